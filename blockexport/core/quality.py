"""How good a model or engine is on a dataset, by one piece of code for both.

`cosine` compares with what the full model gave for the same sample; it measures fidelity where there are no labels.
`vqa_accuracy` is read off the one forward along the most frequent answer. A reply that leaves it is known up to the
token where it does so, and is taken for the answer that begins like that, the one worth least of several.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from blockexport.core.data import IGNORED_LABEL, Batch, Dataset, Sample
from blockexport.errors import DataError

HIGHER_IS_BETTER = {
    "bits_per_byte": False,
    "exact_match": True,
    "multiple_choice": True,
    "vqa_accuracy": True,
    "accuracy": True,
    "cosine": True,
}

Forward = Callable[[Mapping[str, NDArray[np.generic]]], NDArray[np.float32]]
"""Batch inputs to the model's output: (batch, tokens, vocab), (batch, classes) or (batch, tokens, hidden)."""


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One figure: its value, its standard error over samples, and how many samples."""

    value: float
    stderr: float
    num_samples: int
    higher_is_better: bool

    def is_at_least(self, bound: float) -> bool:
        """Whether the figure is as good as `bound` or better."""
        return self.value >= bound if self.higher_is_better else self.value <= bound


@dataclass(frozen=True, slots=True)
class Quality:
    """All figures of one level: one for each metric, and one for each group called `metric/group`."""

    metrics: dict[str, MetricValue]

    @property
    def primary(self) -> tuple[str, MetricValue]:
        """The first metric's name and figure: what one looks at when looking at one figure."""
        return next(iter(self.metrics.items()))

    def to_json(self) -> dict[str, Any]:
        """The figures as a manifest holds them."""
        return {
            name: {
                "value": metric.value,
                "stderr": metric.stderr,
                "n": metric.num_samples,
                "higher_is_better": metric.higher_is_better,
            }
            for name, metric in self.metrics.items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read what `to_json` gave."""
        return cls(
            {
                name: MetricValue(entry["value"], entry["stderr"], entry["n"], entry["higher_is_better"])
                for name, entry in value.items()
            }
        )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _text_scores(output: NDArray[np.float32], batch: Batch, row: int) -> float:
    """Nats over the labelled tokens, 1/0 for an exact match or the right choice, or what a reply is worth."""
    assert batch.labels is not None
    sample = batch.samples[row]
    labels = batch.labels[row, 1:]
    positions = np.flatnonzero(labels != IGNORED_LABEL)
    logits = output[row, positions]
    wanted = labels[positions]
    if sample.metric == "exact_match":
        return float((logits.argmax(-1) == wanted).all())
    if sample.metric == "multiple_choice":
        return float(sample.choices[int(logits[0, list(sample.choices)].argmax())] == wanted[0])
    if sample.metric == "vqa_accuracy":
        return _worth(logits.argmax(-1), wanted, sample)
    return float(-_log_softmax(logits)[np.arange(len(wanted)), wanted].sum())


def _worth(said: NDArray[np.int64], wanted: NDArray[np.int64], sample: Sample) -> float:
    """Worth of the answer that begins as the model does, whose tokens are known up to the first not labelled."""
    apart = np.flatnonzero(said != wanted)
    known = tuple(said[: apart[0] + 1 if len(apart) else len(said)].tolist())
    return min((worth for tokens, worth in sample.replies if tokens[: len(known)] == known), default=0.0)


def _cosine(output: NDArray[np.float32], reference: NDArray[np.float32], batch: Batch, row: int) -> float:
    """Cosine between mean-pooled outputs (or whole outputs, when there are no tokens)."""
    ours, theirs = output[row].astype(np.float64), reference[row].astype(np.float64)
    if ours.ndim > 1:
        mask = batch.inputs.get("attention_mask")
        weights = np.ones(len(ours)) if mask is None else mask[row].astype(np.float64)
        ours, theirs = weights @ ours, weights @ theirs
    return float(ours @ theirs / max(np.linalg.norm(ours) * np.linalg.norm(theirs), 1e-30))


def sample_scores(
    output: NDArray[np.float32], batch: Batch, reference: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """One number per row: nats, 1/0, a worth or a cosine, as each sample's metric asks.

    Raises:
        DataError: the output is not finite, or a cosine is asked for without a reference.
    """
    if not np.isfinite(output).all():
        msg = "the model's output holds NaN or infinity on this data; check the weights and the inputs"
        raise DataError(msg)
    scores = np.zeros(len(batch.samples))
    for row, sample in enumerate(batch.samples):
        if sample.metric == "cosine":
            if reference is None:
                msg = "metric 'cosine' compares with the full model's outputs, but none were given"
                raise DataError(msg)
            scores[row] = _cosine(output, reference, batch, row)
        elif sample.metric == "accuracy":
            assert batch.labels is not None
            scores[row] = float(output[row].argmax() == batch.labels[row])
        else:
            scores[row] = _text_scores(output, batch, row)
    return scores


def evaluate(forward: Forward, dataset: Dataset, *, reference: Forward | None = None, batch_size: int = 16) -> Quality:
    """Run a dataset through a model or engine and collect every metric it names.

    Args:
        forward: batch inputs to output.
        dataset: what to run.
        reference: the full model, needed only by `cosine`.
        batch_size: rows at a time.

    Returns:
        Figures in the order in which the dataset first names them.
    """
    scores: list[float] = []
    for batch in dataset.batches(batch_size):
        theirs = reference(batch.inputs) if reference is not None else None
        scores.extend(sample_scores(forward(batch.inputs), batch, theirs))
    return summarise(np.array(scores), dataset)


def summarise(scores: NDArray[np.float64], dataset: Dataset) -> Quality:
    """Per-sample scores, in the dataset's order, to figures per metric and per group."""
    members: dict[str, list[int]] = {}
    for i, sample in enumerate(dataset.samples):
        members.setdefault(sample.metric, []).append(i)
    groups: dict[str, list[int]] = {}
    for metric, indices in members.items():
        names = dict.fromkeys(dataset.samples[i].group for i in indices)
        if len(names) > 1:
            for name in names:
                groups[f"{metric}/{name}"] = [i for i in indices if dataset.samples[i].group == name]
    figures = {}
    for name, indices in (members | groups).items():
        figures[name] = _figure(name.split("/")[0], scores[indices], [dataset.samples[i].num_bytes for i in indices])
    return Quality(figures)


def _figure(metric: str, scores: NDArray[np.float64], num_bytes: list[int]) -> MetricValue:
    count = len(scores)
    if metric == "bits_per_byte":
        # A ratio of sums; its standard error is that of the residuals (the linearised ratio estimator).
        sizes = np.array(num_bytes, dtype=np.float64)
        value = scores.sum() / sizes.sum()
        spread = np.std(scores - value * sizes, ddof=1) / sizes.mean() if count > 1 else 0.0
        value, spread = value / math.log(2), spread / math.log(2)
    else:
        value, spread = scores.mean(), np.std(scores, ddof=1) if count > 1 else 0.0
    return MetricValue(float(value), float(spread / math.sqrt(count)), count, HIGHER_IS_BETTER[metric])
