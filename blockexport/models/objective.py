"""How far a masked model is from the full one: the figure that greedy selection lowers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from blockexport.core.data import IGNORED_LABEL, Dataset
from blockexport.core.masks import DepthMask
from blockexport.errors import ConfigError
from blockexport.models.batches import DEFAULT_BATCH_SIZE, ModelBatch, ModelData, read_data
from blockexport.models.forward import is_per_token, main_output, pool_tokens, run_model
from blockexport.models.loaded import LoadedModel, as_loaded
from blockexport.models.partial import RecordedRun, record, rerun, skipping

Objective = Callable[[DepthMask], float]


@dataclass(slots=True, eq=False)
class _Anchor:
    """One batch: what the full model said, and the latest run to continue from."""

    batch: ModelBatch
    reference: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    run: RecordedRun | None = None


class FullModelDivergence:
    """Mean divergence of a masked model's output from the full model's, on fixed data.

    For logits the divergence is KL(full || masked) in nats, over the positions that predict a label where the data
    has token labels, else over all tokens that are no padding; over images for classifiers. For hidden states it is
    1 - cosine of the mean-pooled output.

    Each batch keeps the hidden states of its latest run, and the next mask runs only from the first block that
    differs. Candidates that drop one block each, asked from the last block to the first, so cost what lies behind
    the dropped block. This holds num_blocks x tokens x hidden numbers in memory; choose the number of samples
    accordingly.

    Args:
        model: the model.
        data: what it is run on.
        side: its vision side, if masks are of that; the whole model then runs for each.
    """

    def __init__(self, model: LoadedModel, data: ModelData, side: LoadedModel | None = None) -> None:
        self._model = model
        self._side = side
        self._anchors = [_Anchor(batch) for batch in data]
        full = DepthMask.full((side or model).num_blocks)
        for anchor in self._anchors:
            anchor.reference = self._prepare(anchor.batch, self._outputs(anchor, full))

    def __call__(self, mask: DepthMask) -> float:
        """The mean divergence of the model under `mask`, 0 for the full mask.

        Raises:
            MaskError: the mask does not fit the model.
            DataError: the masked model's output is not finite.
        """
        total, count = 0.0, 0
        for anchor in self._anchors:
            ours = self._prepare(anchor.batch, self._outputs(anchor, mask))
            total += float(self._divergence(ours, anchor.reference).sum(dtype=torch.float64))
            count += len(ours)
        return total / count

    def _outputs(self, anchor: _Anchor, mask: DepthMask) -> Any:
        inputs = anchor.batch.inputs
        if self._side is not None:
            with torch.no_grad(), skipping(self._side, mask):
                return run_model(self._model, inputs)
        anchor.run = record(self._model, inputs, mask) if anchor.run is None else rerun(self._model, anchor.run, mask)
        return anchor.run.outputs

    def _prepare(self, batch: ModelBatch, outputs: Any) -> torch.Tensor:
        """The rows that are compared: log-probabilities (positions, classes) or pooled vectors (batch, hidden)."""
        output = main_output(self._model, outputs)
        if self._model.spec.output == "last_hidden_state":
            return pool_tokens(batch, output)
        rows = output[compared_positions(batch, output)] if is_per_token(output) else output
        return nn.functional.log_softmax(rows, dim=-1)

    def _divergence(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        if self._model.spec.output == "last_hidden_state":
            return 1 - nn.functional.cosine_similarity(ours, theirs, dim=-1)
        return nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def compared_positions(batch: ModelBatch, output: torch.Tensor) -> torch.Tensor:
    """Which positions of token logits (batch, tokens, vocab) count, as flags (batch, tokens)."""
    real = batch.token_weights(output) > 0
    if batch.labels is None or batch.labels.shape != output.shape[:2]:
        return real
    predicts = torch.zeros_like(real)
    predicts[:, :-1] = batch.labels.to(real.device)[:, 1:] != IGNORED_LABEL
    return predicts if bool(predicts.any()) else real


def kl_objective(
    model: LoadedModel | nn.Module,
    data: Dataset | Iterable[Mapping[str, Any]],
    *,
    num_samples: int | None = None,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH_SIZE,
    vision: bool = False,
) -> Objective:
    """The divergence from the full model as a function of the mask.

    Args:
        model: a loaded model, or a transformers module.
        data: a dataset, a DataLoader or an iterable of dict batches; labels only say which tokens count.
        num_samples: samples to use; all when None.
        seed: seed of the draw.
        batch_size: rows at a time.
        vision: masks are of the vision side of a model that reads pictures.

    Raises:
        ConfigError: the model has no vision side.
        DataError: there is no sample, or the full model's output is not finite on one.
    """
    loaded = as_loaded(model)
    side = loaded.vision_side if vision else None
    if vision and side is None:
        msg = f"{loaded.spec.name} reads no pictures and has no vision side to measure; leave vision out"
        raise ConfigError(msg)
    read = read_data(data, num_samples=num_samples, seed=seed, batch_size=batch_size)
    return FullModelDivergence(loaded, read, side)
