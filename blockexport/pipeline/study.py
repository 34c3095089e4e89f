"""Compare every way of choosing blocks on one model: each scoring method and each strategy at each depth."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from blockexport.core.data import Dataset
from blockexport.core.masks import DepthMask
from blockexport.core.model import ModelKind
from blockexport.core.quality import Quality, sample_scores, summarise
from blockexport.core.scores import BlockScores
from blockexport.core.study import FULL, Study, StudyData, StudyRow
from blockexport.errors import ConfigError
from blockexport.models.batches import read_data
from blockexport.models.forward import main_output
from blockexport.models.loaded import LoadedModel
from blockexport.models.objective import kl_objective
from blockexport.models.partial import RecordedRun, record, rerun
from blockexport.scoring import score
from blockexport.selection import resolve_depths, select
from blockexport.selection.ranking import check_depths

METHODS = ("activation", "gradient", "accuracy_drop", "attention", "block_influence", "loss_drop")
THRESHOLD_METHOD = "loss_drop"

Stage = Callable[[str, float], None]
"""Called with what begins and the share of the study that is done, 0 to 1."""

# Rough shares of the time, for the progress bar only.
_SCORING_ENDS, _SEARCH_ENDS = 0.4, 0.65
_TEST_BATCH = 16


@dataclass(frozen=True, slots=True)
class StudySize:
    """How many samples are looked at, spread evenly over the groups of the data.

    Attributes:
        selection: for the scores.
        greedy: for greedy and beam selection, which run the model some hundred times.
        test: for the quality of each choice.
    """

    selection: int
    greedy: int
    test: int


# What one busy core does in about a minute with models of a few million parameters. Sentences and texts are long,
# pictures are short.
_DEFAULT_SIZES: dict[ModelKind, StudySize] = {
    "decoder": StudySize(selection=64, greedy=32, test=1000),
    "encoder": StudySize(selection=64, greedy=32, test=256),
    "vision": StudySize(selection=256, greedy=256, test=1000),
}


@dataclass(frozen=True, slots=True)
class _Choice:
    strategy: str
    method: str
    mask: DepthMask


def run_study(
    model: LoadedModel,
    *,
    selection_data: Dataset,
    test_data: Dataset,
    depths: Sequence[int | float] = (0.75, 0.5, 0.25),
    methods: Sequence[str] | None = None,
    protected: Sequence[int] = (),
    seed: int = 66,
    num_samples: StudySize | None = None,
    beam_width: int | None = None,
    on_stage: Stage | None = None,
) -> Study:
    """Choose blocks in every way at every depth, and measure each choice with the masked eager model.

    `top_k` is run with each scoring method, `threshold` on loss drops with the threshold that leaves each depth (or
    the nearest one, when scores are equal), `sequential` and `greedy` without scores, and so is `beam` if it is asked
    for: it takes as many times longer than `greedy` as it is wide.

    Args:
        model: the model.
        selection_data: what blocks are chosen on.
        test_data: what the choices are judged on.
        depths: counts or fractions; the full model is always a row of its own.
        methods: scoring methods; None for all, but for `gradient` on data without labels, which has no loss.
        protected: blocks that stay at every depth.
        seed: of the draw of the samples; the same seed gives the same study.
        num_samples: samples to use; None for what a busy core does in about a minute with a demo model.
        beam_width: combinations of each size that `beam` goes on with; None for no `beam`.
        on_stage: told what begins.

    Raises:
        ConfigError: an unknown method, a width below 1, or depths or protected blocks that cannot be.
        DataError: data that does not fit the model.
    """
    work = _Work(model, selection_data, test_data, num_samples or _DEFAULT_SIZES[model.spec.kind], seed, on_stage)
    if beam_width is not None and beam_width < 1:
        msg = f"beam_width is {beam_width}; give at least 1"
        raise ConfigError(msg)
    counts = [count for count in resolve_depths(depths, model.num_blocks)[0] if count < model.num_blocks]
    unscored = _unscored(model, tuple(sorted(set(protected))))
    # Depths that cannot be are refused here, not after a minute of scoring.
    check_depths(counts, unscored, min_depth=1)
    scores = work.score(methods, protected)
    choices = work.choose(counts, scores, unscored, beam_width)
    return Study(
        model=model.spec.name,
        model_digest=model.spec.digest,
        num_blocks=model.num_blocks,
        selection_data=StudyData(work.chosen_on.name, work.chosen_on.digest, len(work.chosen_on)),
        test_data=StudyData(work.judged_on.name, work.judged_on.digest, len(work.judged_on)),
        seed=seed,
        scores=tuple(scores),
        rows=work.measure(choices),
    )


class _Work:
    """One study while it is made."""

    def __init__(
        self,
        model: LoadedModel,
        selection_data: Dataset,
        test_data: Dataset,
        size: StudySize,
        seed: int,
        on_stage: Stage | None,
    ) -> None:
        self._model = model
        self._seed = seed
        self._tell: Stage = on_stage or (lambda _what, _share: None)
        self.chosen_on = draw_evenly(selection_data, size.selection, seed)
        self.judged_on = draw_evenly(test_data, size.test, seed)
        self._greedy_on = draw_evenly(self.chosen_on, size.greedy, seed)

    def score(self, methods: Sequence[str] | None, protected: Sequence[int]) -> list[BlockScores]:
        names = _fitting_methods(self.chosen_on) if methods is None else tuple(methods)
        scores = []
        for index, name in enumerate(names):
            self._tell(f"scoring blocks by {name}", _SCORING_ENDS * index / len(names))
            scores.append(score(self._model, method=name, data=self.chosen_on, protected=protected, seed=self._seed))
        return scores

    def choose(
        self, counts: Sequence[int], scores: Sequence[BlockScores], unscored: BlockScores, beam_width: int | None
    ) -> list[_Choice]:
        """Every choice, the full model first."""
        choices = [_Choice(FULL, "", DepthMask.full(unscored.num_blocks))]
        if not counts:
            return choices
        for by_method in scores:
            choices += _by_scores(by_method, counts)
        ladder = select(unscored, depths=counts, strategy="sequential")
        choices += [_Choice("sequential", "", level.mask) for level in ladder.levels]
        return choices + self._search(counts, unscored, beam_width)

    def _search(self, counts: Sequence[int], unscored: BlockScores, beam_width: int | None) -> list[_Choice]:
        """What is found by measuring combinations."""
        widths = {"greedy": None} if beam_width is None else {"greedy": None, "beam": beam_width}
        span = (_SEARCH_ENDS - _SCORING_ENDS) / len(widths)
        choices = []
        for index, (strategy, width) in enumerate(widths.items()):
            what, begin = f"selecting by {strategy}", _SCORING_ENDS + span * index
            self._tell(what, begin)
            ladder = select(
                unscored,
                depths=counts,
                strategy=strategy,
                beam_width=width,
                objective=kl_objective(self._model, self._greedy_on),
                on_progress=partial(self._tell_share, what, begin, span),
            )
            choices += [_Choice(strategy, "", level.mask) for level in ladder.levels]
        return choices

    def _tell_share(self, what: str, begin: float, span: float, done: int, total: int) -> None:
        self._tell(what, begin + span * done / total)

    def measure(self, choices: Sequence[_Choice]) -> tuple[StudyRow, ...]:
        """A row for each choice."""
        what = "measuring every choice"
        self._tell(what, _SEARCH_ENDS)
        qualities = measure_masks(
            self._model,
            [choice.mask for choice in choices],
            self.judged_on,
            on_progress=lambda share: self._tell(what, _SEARCH_ENDS + (1 - _SEARCH_ENDS) * share),
        )
        return tuple(
            StudyRow(choice.strategy, choice.method, choice.mask.depth, choice.mask.kept, qualities[choice.mask])
            for choice in choices
        )


def draw_evenly(data: Dataset, num_samples: int, seed: int) -> Dataset:
    """A random subset with every group's share in it, in the data's own order.

    Order is kept because texts of one group are about equally long: batches of one group hold little padding.

    Args:
        data: what to draw from.
        num_samples: samples to draw, at least one of each group; all when there are not more.
        seed: of the draw.

    Raises:
        ConfigError: `num_samples` is below 1.
    """
    if num_samples < 1:
        msg = f"num_samples is {num_samples}; give at least 1"
        raise ConfigError(msg)
    if num_samples >= len(data):
        return data
    rng = np.random.default_rng(seed)
    members: dict[tuple[str, str], list[int]] = {}
    for i, sample in enumerate(data.samples):
        members.setdefault((sample.metric, sample.group), []).append(i)
    drawn: list[int] = []
    for indices in members.values():
        count = max(1, round(num_samples * len(indices) / len(data)))
        drawn += rng.permutation(indices)[:count].tolist()
    return Dataset(data.name, tuple(data.samples[i] for i in sorted(drawn)), data.pad_token)


def _unscored(model: LoadedModel, protected: tuple[int, ...]) -> BlockScores:
    """What strategies need that look at no scores: how many blocks there are, and which must stay."""
    return BlockScores(
        method="none",
        scores=tuple(math.inf if i in protected else 0.0 for i in range(model.num_blocks)),
        stderr=(0.0,) * model.num_blocks,
        protected=protected,
        model=model.spec.digest,
    )


def _fitting_methods(data: Dataset) -> tuple[str, ...]:
    has_labels = all(sample.labels is not None for sample in data.samples)
    return tuple(method for method in METHODS if method != "gradient" or has_labels)


def _by_scores(scores: BlockScores, counts: Sequence[int]) -> list[_Choice]:
    ladder = select(scores, depths=counts, strategy="top_k")
    choices = [_Choice("top_k", scores.method, level.mask) for level in ladder.levels]
    if scores.method == THRESHOLD_METHOD:
        masks = dict.fromkeys(_by_threshold(scores, count) for count in counts)
        choices += [_Choice("threshold", scores.method, mask) for mask in masks]
    return choices


def _by_threshold(scores: BlockScores, depth: int) -> DepthMask:
    """What `threshold` keeps with the threshold half-way between the last block to stay and the first to go."""
    measured = sorted((s for i, s in enumerate(scores.scores) if i not in scores.protected), reverse=True)
    stay = depth - len(scores.protected)
    highest = measured[0]
    bound = (measured[stay - 1] + measured[stay]) / 2 if stay else highest + abs(highest) + 1
    # Thresholds are relative to the highest score; of a highest score of 0 every threshold is the same.
    threshold = bound / highest if highest else 1.0
    (level,) = select(scores, strategy="threshold", threshold=threshold).levels
    return level.mask


def measure_masks(
    model: LoadedModel,
    masks: Sequence[DepthMask],
    data: Dataset,
    *,
    on_progress: Callable[[float], None] | None = None,
) -> dict[DepthMask, Quality]:
    """Quality of the model under each mask, as `core.quality.evaluate` gives it, in less time.

    Masks that begin with the same blocks follow one another, and each runs only from the first block that differs.

    Args:
        model: the model, without a mask.
        masks: may repeat.
        data: what to run.
        on_progress: called with the share done.
    """
    ordered = sorted(set(masks), key=DepthMask.to_bools, reverse=True)
    gathered: dict[DepthMask, list[NDArray[np.float64]]] = {mask: [] for mask in ordered}
    needs_reference = any(sample.metric == "cosine" for sample in data.samples)
    batches = read_data(data, batch_size=_TEST_BATCH)
    for done, batch in enumerate(batches):
        assert batch.rows is not None
        reference = _output(model, record(model, batch.inputs)) if needs_reference else None
        run = record(model, batch.inputs, ordered[0])
        for mask in ordered:
            run = rerun(model, run, mask)
            gathered[mask].append(sample_scores(_output(model, run), batch.rows, reference))
        if on_progress is not None:
            on_progress((done + 1) / len(batches))
    return {mask: summarise(np.concatenate(parts), data) for mask, parts in gathered.items()}


def _output(model: LoadedModel, run: RecordedRun) -> NDArray[np.float32]:
    output: NDArray[np.float32] = main_output(model, run.outputs).cpu().numpy()
    return output
