"""What texts are read like whose level goes up half way: the price of passing over holes, measured on the engines."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from blockexport.core.data import Dataset
from blockexport.core.quality import Quality, evaluate
from blockexport.datasets import load_dataset
from blockexport.errors import DataError
from blockexport.runtime import load
from blockexport.runtime.switch_quality import switch_quality

_TEXT_INPUTS = frozenset({"input_ids", "attention_mask"})


@dataclass(frozen=True, slots=True)
class SwitchedPair:
    """One level reads the first half of each text, a deeper one the rest.

    Attributes:
        before: name of the shallower level.
        after: name of the deeper one.
        stays: quality of the shallower level for all of it.
        reprefill: with the missing tokens run at the deeper level.
        masked: with the missing tokens passed over.
    """

    before: str
    after: str
    stays: Quality
    reprefill: Quality
    masked: Quality


@dataclass(frozen=True, slots=True)
class Switching:
    """Every step up a ladder, on the same texts.

    Attributes:
        data: name of the texts.
        num_samples: how many.
        pairs: shallowest first.
    """

    data: str
    num_samples: int
    pairs: tuple[SwitchedPair, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures as the command line prints them."""
        return {
            "data": self.data,
            "num_samples": self.num_samples,
            "pairs": [
                {
                    "before": pair.before,
                    "after": pair.after,
                    "stays": pair.stays.to_json(),
                    "reprefill": pair.reprefill.to_json(),
                    "masked": pair.masked.to_json(),
                }
                for pair in self.pairs
            ],
        }


def measure_switching(bundle: Path, source: str, num_samples: int) -> Switching:
    """Read texts token by token, once for each pair of neighbouring levels and each way of going up.

    Args:
        bundle: of a decoder.
        source: what `load_dataset` takes.
        num_samples: texts, chosen at random from those the source has.

    Raises:
        BundleError: the bundle cannot be opened.
        DataError: the model is no decoder, or the source has no texts that it can take.
    """
    runtime = load(bundle)
    spec = runtime.bundle.manifest.model
    if spec.kind != "decoder":
        msg = f"a switch needs a decoder, {spec.name} is of kind {spec.kind}; leave out the data for switches"
        raise DataError(msg)
    data = load_dataset(source, spec, runtime.bundle.tokenizer_folder, split="test")
    samples = tuple(sample for sample in data.samples if set(sample.inputs) <= _TEXT_INPUTS)
    if not samples:
        msg = f"{source} has pictures only, and a switch is measured on text; give a .txt or .jsonl file"
        raise DataError(msg)
    texts = Dataset(data.name, samples, data.pad_token).take(num_samples, seed=0)
    names = [level.name for level in runtime.levels][::-1]
    pairs = []
    for before, after in pairwise(names):
        stays = evaluate(runtime.engines.whole_pass(before), texts)
        reprefill = switch_quality(runtime.engines, texts, before, after, "reprefill")
        masked = switch_quality(runtime.engines, texts, before, after, "masked")
        pairs.append(SwitchedPair(before, after, stays, reprefill, masked))
    return Switching(data.name, len(texts.samples), tuple(pairs))
