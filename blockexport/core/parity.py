"""What the eager masked reference answered, recorded so that an engine can be held to it anywhere.

A recording travels in the bundle; checking an engine against it needs neither torch nor the checkpoint.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.errors import ParityError

# An engine sums in another order than eager torch does; both are off the exact result by rounding of the same size.
# Eager fp32 measured against fp64 says how large that is for this model on this input. Eight times leaves room for
# the spread between summation orders; a wrong mask, position or weight is off by orders of magnitude more.
TOLERANCE_FACTOR = 8.0
# A reference that has lost half of its digits has not been rounded, it is wrong: its cached generation disagrees with
# its own single pass, and a tolerance derived from that would let any engine through.
_LARGEST_RELATIVE_ERROR = float(np.sqrt(np.finfo(np.float32).eps))
_TOLERANCES = "tolerances"


@dataclass(frozen=True, slots=True, eq=False)
class ParityCase:
    """One input and the reference's answer.

    Attributes:
        check: what is exercised: `prefill`, `decode`, `padded` or `chunked`, with `pictures-` in front for prompts with
            pictures, or `forward`.
        inputs: decoders: `prompt` (batch, seq) int64 padded on the right, `lengths` (batch,) int64 and `continuation`
            (batch, steps) int64, the tokens fed one by one (or, for `chunked`, all at once) after the prompt, and for
            pictures `images`, `image_masks` and `image_input_idx` as `core.pictures` has them;
            others: the model's inputs.
        expected: decoders: logits (batch, 1 + steps, vocab_sample) of the prompt's last token and of each continuation
            token (of the last one only for `chunked`); others: the output.
        argmax: decoders: (batch, 1 + steps) int64, most likely token over the whole vocabulary; else empty.
        columns: vocabulary entries that `expected` holds, (vocab_sample,) int64; empty for all.
        tolerance: largest absolute difference allowed.
    """

    check: str
    inputs: dict[str, NDArray[np.generic]]
    expected: NDArray[np.float32]
    argmax: NDArray[np.int64]
    columns: NDArray[np.int64]
    tolerance: float


def tolerance_of(reference: NDArray[np.float32], exact: NDArray[np.float64]) -> float:
    """Largest difference an engine may show, derived from the reference's own rounding error.

    Args:
        reference: eager fp32 outputs.
        exact: the same in fp64.

    Raises:
        ParityError: the two are too far apart to be the same computation.
    """
    own_error = float(np.abs(reference.astype(np.float64) - exact).max())
    largest = float(np.abs(exact).max())
    if not own_error <= _LARGEST_RELATIVE_ERROR * largest:
        msg = (
            f"the eager model in fp32 is {own_error:.3g} off its fp64 self, of outputs up to {largest:.3g}, so nothing "
            "can be proved against it; check that the weights are finite and that its cached generation is right"
        )
        raise ParityError(msg)
    # Below one rounding of the largest output no error can be resolved.
    resolution = float(np.finfo(np.float32).eps) * largest
    return TOLERANCE_FACTOR * max(own_error, resolution)


# An engine that rounds activations to integers makes the same errors, up to ties that fall the other way. The largest
# of as many errors of the same kind hardly ever differs by more than twice.
ROUNDING_FACTOR = 2.0


def rounding_allowance(rounded: NDArray[np.floating] | None, exact: NDArray[np.float64]) -> float:
    """What an engine may be off beyond `tolerance_of` because it is documented to round more than fp32 does.

    Args:
        rounded: outputs of the eager model with that rounding; None when there is none.
        exact: the same in fp64, without it.
    """
    return 0.0 if rounded is None else ROUNDING_FACTOR * float(np.abs(rounded.astype(np.float64) - exact).max())


def pack_cases(cases: Mapping[str, tuple[ParityCase, ...]]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Flatten cases by level name to tensors and text metadata, as safetensors files hold them.

    The metadata is one entry: safetensors writes several in an order that differs from run to run.
    """
    tensors: dict[str, NDArray[Any]] = {}
    tolerances = {}
    for level, level_cases in cases.items():
        for case in level_cases:
            key = f"{level}/{case.check}"
            tolerances[key] = case.tolerance
            tensors |= {f"{key}/inputs/{name}": np.ascontiguousarray(array) for name, array in case.inputs.items()}
            for field in ("expected", "argmax", "columns"):
                tensors[f"{key}/{field}"] = np.ascontiguousarray(getattr(case, field))
    return tensors, {_TOLERANCES: json.dumps(tolerances)}


def unpack_cases(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> dict[str, tuple[ParityCase, ...]]:
    """The inverse of `pack_cases`."""
    cases: dict[str, tuple[ParityCase, ...]] = {}
    for key, tolerance in json.loads(metadata.get(_TOLERANCES, "{}")).items():
        level, check = key.split("/")
        prefix = f"{key}/inputs/"
        case = ParityCase(
            check,
            {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)},
            tensors[f"{key}/expected"],
            tensors[f"{key}/argmax"],
            tensors[f"{key}/columns"],
            float(tolerance),
        )
        cases[level] = (*cases.get(level, ()), case)
    return cases
