"""What the strategies share that measure the model again while they choose."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blockexport.core.masks import DepthMask
from blockexport.errors import ScoresError

Objective = Callable[[DepthMask], float]
"""How bad the model is under a mask; lower is better."""

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Removal:
    """A block that goes, and the objective without it and all that went before."""

    block: int
    value: float


def measure(objective: Objective, mask: DepthMask) -> float:
    """The objective under a mask.

    Raises:
        ScoresError: it is NaN or infinity.
    """
    value = float(objective(mask))
    if not math.isfinite(value):
        msg = f"the objective is {value} with blocks {list(mask.kept)}; it must be finite, check the data and the model"
        raise ScoresError(msg)
    return value


def removal_note(removals: Sequence[Removal]) -> str:
    """The order in which blocks went, for a ladder's notes."""
    listed = ", ".join(f"{removal.block} ({removal.value:.4g})" for removal in removals)
    return f"removed in order, with the objective reached: {listed}"
