"""How far a masked model is from the full one: the figure that greedy selection lowers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blockexport.core.data import IGNORED_LABEL, Dataset
from blockexport.core.masks import DepthMask
from blockexport.models.batches import DEFAULT_BATCH_SIZE, ModelBatch, ModelData, read_data
from blockexport.models.forward import is_per_token, main_output, pool_tokens
from blockexport.models.loaded import LoadedModel, as_loaded
from blockexport.models.partial import RecordedRun, record, rerun

Objective = Callable[[DepthMask], float]


@dataclass(slots=True, eq=False)
class _Anchor:
    """One batch: what the full model said, and the latest run to continue from."""

    batch: ModelBatch
    reference: torch.Tensor
    run: RecordedRun


class FullModelDivergence:
    """Mean divergence of a masked model's output from the full model's, on fixed data.

    For logits the divergence is KL(full || masked) in nats, over the positions that predict a label where the data
    has token labels, else over all tokens that are no padding; over images for classifiers. For hidden states it is
    1 - cosine of the mean-pooled output.

    Each batch keeps the hidden states of its latest run, and the next mask runs only from the first block that
    differs. Candidates that drop one block each, asked from the last block to the first, so cost what lies behind
    the dropped block. This holds num_blocks x tokens x hidden numbers in memory; choose the number of samples
    accordingly.
    """

    def __init__(self, model: LoadedModel, data: ModelData) -> None:
        self._model = model
        self._anchors = []
        for batch in data:
            run = record(model, batch.inputs)
            self._anchors.append(_Anchor(batch, self._prepare(batch, run.outputs), run))

    def __call__(self, mask: DepthMask) -> float:
        """The mean divergence of the model under `mask`, 0 for the full mask.

        Raises:
            MaskError: the mask does not fit the model.
            DataError: the masked model's output is not finite.
        """
        total, count = 0.0, 0
        for anchor in self._anchors:
            anchor.run = rerun(self._model, anchor.run, mask)
            ours = self._prepare(anchor.batch, anchor.run.outputs)
            total += float(self._divergence(ours, anchor.reference).sum(dtype=torch.float64))
            count += len(ours)
        return total / count

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
) -> Objective:
    """The divergence from the full model as a function of the mask.

    Args:
        model: a loaded model, or a transformers module.
        data: a dataset, a DataLoader or an iterable of dict batches; labels only say which tokens count.
        num_samples: samples to use; all when None.
        seed: seed of the draw.
        batch_size: rows at a time.

    Raises:
        DataError: there is no sample, or the full model's output is not finite on one.
    """
    read = read_data(data, num_samples=num_samples, seed=seed, batch_size=batch_size)
    return FullModelDivergence(as_loaded(model), read)
