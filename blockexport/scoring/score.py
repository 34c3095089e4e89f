"""The one entry to all scoring methods."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from blockexport.core.data import Dataset
from blockexport.core.scores import BlockScores
from blockexport.datasets import load_dataset
from blockexport.errors import ConfigError, DataError, ScoresError
from blockexport.models.batches import DEFAULT_BATCH_SIZE, ModelData, read_data
from blockexport.models.loaded import LoadedModel, as_loaded
from blockexport.scoring.accuracy_drop import score_accuracy_drop, score_model_metric
from blockexport.scoring.activation import score_activation
from blockexport.scoring.attention import score_attention
from blockexport.scoring.block_influence import score_block_influence
from blockexport.scoring.collect import collect_scores
from blockexport.scoring.gradient import score_gradient
from blockexport.scoring.job import ScoringJob
from blockexport.scoring.loss_drop import score_loss_drop
from blockexport.scoring.progress import Progress, ProgressCallback

_ACCURACY_DROP = "accuracy_drop"
_BY_BATCH: dict[str, Callable[[ScoringJob], None]] = {
    "activation": score_activation,
    "gradient": score_gradient,
    "attention": score_attention,
    "block_influence": score_block_influence,
}
_BY_BLOCK: dict[str, Callable[[ScoringJob], None]] = {"loss_drop": score_loss_drop}
SCORING_METHODS: tuple[str, ...] = (_ACCURACY_DROP, *_BY_BLOCK, *_BY_BATCH)


def score(
    model: LoadedModel | nn.Module,
    *,
    method: str,
    data: Dataset | str | Path | Iterable[Mapping[str, Any]] | None = None,
    metric: Callable[..., Any] | None = None,
    protected: Sequence[int] = (),
    seed: int = 0,
    num_samples: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    vision: bool = False,
    resume_path: Path | None = None,
    on_progress: ProgressCallback | None = None,
) -> BlockScores:
    """Measure how much a model needs each of its blocks.

    Args:
        model: a loaded model, or a transformers module; scored in evaluation mode, left as it was.
        method: one of `SCORING_METHODS`; each is explained in its own file.
        data: a dataset, a name or file that `load_dataset` takes, a DataLoader, or an iterable of dict batches with
            `labels`. None only for `accuracy_drop` with a metric that runs the model itself.
        metric: for `accuracy_drop` only, higher is better. With data: `metric(outputs, batch)` gives one number for
            each sample; without: `metric(model)` gives one number.
        protected: blocks that must stay; they are not measured and score +inf.
        seed: of the draw of `num_samples` from a dataset.
        num_samples: samples to use; all when None or when there are fewer.
        batch_size: rows at a time; batches of an iterable stay as they are.
        vision: score the blocks of the vision side of a model that reads pictures, by what the whole model loses
            without each; only for methods that drop blocks, and with data.
        resume_path: file that carries an unfinished run over a kill; written after every step, removed at the end.
        on_progress: called with (steps done, steps in all).

    Returns:
        Scores with standard errors over samples, for drops over paired differences; 0 where the noise is unknown. Also
        those of each task and of either half of the samples; a task's weight in the score is its number of samples.

    Raises:
        ConfigError: an unknown method or a metric for a method that takes none.
        DataError: no sample, samples that do not fit the method, or outputs that are not finite.
        MaskError: a mask is applied to the model.
        ModelSupportError: the method does not work for this architecture.
        ScoresError: a protected block that does not exist, or `resume_path` holds another run.
    """
    _check_method(method, metric)
    with _evaluation_mode(model.module if isinstance(model, LoadedModel) else model):
        loaded = as_loaded(model)
        side = _vision_side(loaded, method, data) if vision else loaded
        kept = _check_protected(protected, side)
        if isinstance(data, str | Path):
            data = load_dataset(data, loaded.spec, loaded.tokenizer_dir)
        read = _read(data, metric, num_samples=num_samples, seed=seed, batch_size=batch_size)
        blocks = tuple(i for i in range(side.num_blocks) if i not in kept)
        identity = {
            "method": method,
            "model": loaded.spec.vision_scores_digest if vision else loaded.spec.digest,
            "data": read.digest if read else "",
            "seed": seed,
            "num_samples": read.num_samples if read else 0,
            "batch_size": batch_size,
            "protected": list(kept),
            **({"vision": True} if vision else {}),
            "metric": getattr(metric, "__qualname__", type(metric).__name__) if metric else "",
        }
        total = _count_steps(method, read, blocks)
        progress = Progress.start(identity, side.num_blocks, total, resume_path, on_progress)
        if read is not None:
            _run(method, ScoringJob(loaded, read, blocks, progress, side), metric)
        elif metric is not None:
            score_model_metric(loaded, model, metric, blocks, progress)
    result = collect_scores(progress, kept)
    progress.finish()
    return result


def _run(method: str, job: ScoringJob, metric: Callable[..., Any] | None) -> None:
    if not job.blocks:
        return
    if method == _ACCURACY_DROP:
        score_accuracy_drop(job, metric)
    else:
        (_BY_BLOCK | _BY_BATCH)[method](job)


def _count_steps(method: str, data: ModelData | None, blocks: tuple[int, ...]) -> int:
    if data is None or not blocks:
        return len(blocks)
    return len(data) * (1 if method in _BY_BATCH else len(blocks))


def _check_method(method: str, metric: Callable[..., Any] | None) -> None:
    if method not in SCORING_METHODS:
        msg = f"unknown scoring method {method!r}; choose one of {', '.join(SCORING_METHODS)}"
        raise ConfigError(msg)
    if metric is not None and method != _ACCURACY_DROP:
        msg = f"method {method!r} takes no metric; leave it out, or use {_ACCURACY_DROP!r}"
        raise ConfigError(msg)


def _vision_side(model: LoadedModel, method: str, data: Any) -> LoadedModel:
    side = model.vision_side
    if side is None:
        msg = f"{model.spec.name} reads no pictures and has no vision side to score; score the model itself"
        raise ConfigError(msg)
    if data is None or method in _BY_BATCH:
        methods = ", ".join((_ACCURACY_DROP, *_BY_BLOCK))
        msg = f"method {method!r} does not score a vision side so; use one of {methods}, with data"
        raise ConfigError(msg)
    return side


def _check_protected(protected: Sequence[int], model: LoadedModel) -> tuple[int, ...]:
    kept = tuple(sorted({int(block) for block in protected}))
    if kept and not 0 <= kept[0] <= kept[-1] < model.num_blocks:
        msg = f"protected blocks {list(kept)} reach outside 0..{model.num_blocks - 1}; name blocks of {model.spec.name}"
        raise ScoresError(msg)
    return kept


def _read(data: Any, metric: Callable[..., Any] | None, **options: Any) -> ModelData | None:
    if data is not None:
        return read_data(data, **options)
    if metric is None:
        msg = "no data given; pass a Dataset or a DataLoader, or to 'accuracy_drop' a metric that runs the model itself"
        raise DataError(msg)
    return None


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    was_training = [part for part in module.modules() if part.training]
    module.train(mode=False)
    try:
        yield
    finally:
        for part in was_training:
            part.training = True
