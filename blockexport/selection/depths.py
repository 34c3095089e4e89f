"""Depths as people write them: counts, fractions of the model, or what a latency budget allows."""

import math
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal

from blockexport.errors import ConfigError, MaskError

Depth = int | float


def parse_depths(text: str) -> tuple[Depth, ...]:
    """Read `12,9,6` as counts and `1.0,0.75` as fractions; a decimal point makes a fraction.

    Raises:
        MaskError: an entry is neither.
    """
    entries = [entry.strip() for entry in text.split(",")]
    try:
        return tuple(int(entry) if entry.lstrip("+-").isdecimal() else float(entry) for entry in entries)
    except ValueError as error:
        msg = f"depths {text!r} are not readable; give counts such as 12,9,6 or fractions such as 1.0,0.75,0.5"
        raise MaskError(msg) from error


def resolve_depths(depths: Sequence[Depth], num_blocks: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Turn counts and fractions into counts.

    Args:
        depths: int for a count from 1 to `num_blocks`, float for a fraction above 0 and up to 1, which is rounded
            half up and to at least one block.
        num_blocks: blocks of the model.

    Returns:
        Distinct counts, deepest first, and notes on entries that fell together.

    Raises:
        MaskError: there is no depth, or one is outside the range.
    """
    if not depths:
        msg = "no depths given; give at least one, such as 12,9,6 or 0.75,0.5"
        raise MaskError(msg)
    counts = [_resolve(depth, num_blocks) for depth in depths]
    chosen = tuple(sorted(set(counts), reverse=True))
    notes = []
    for count in chosen:
        same = [depth for depth, resolved in zip(depths, counts, strict=True) if resolved == count]
        if len(same) > 1:
            listed = ", ".join(str(depth) for depth in same)
            notes.append(f"depths {listed} are all {count} of {num_blocks} blocks and make one level")
    return chosen, tuple(notes)


def _resolve(depth: Depth, num_blocks: int) -> int:
    if isinstance(depth, float):
        if not 0 < depth <= 1:
            msg = f"depth {depth} is no fraction; give a float above 0 and up to 1, or a whole number of blocks"
            raise MaskError(msg)
        # Decimal keeps 0.35 x 10 at 3.5, which binary floats may put just below the half.
        exact = Decimal(repr(float(depth))) * num_blocks
        return max(1, int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)))
    if isinstance(depth, bool) or not hasattr(depth, "__index__"):
        msg = f"depth {depth!r} is no number; give counts such as 12 or fractions such as 0.75"
        raise MaskError(msg)
    count = depth.__index__()
    if not 1 <= count <= num_blocks:
        msg = f"depth {count} is outside 1..{num_blocks}; the model has {num_blocks} blocks"
        raise MaskError(msg)
    return count


def depth_for_budget(latency_ms: Callable[[int], float], budget_ms: float, num_blocks: int) -> int:
    """The deepest depth whose latency fits a budget.

    Args:
        latency_ms: of a number of kept blocks.
        budget_ms: what must not be exceeded.
        num_blocks: blocks of the model.

    Raises:
        ConfigError: the budget is negative or not finite, or even one block does not fit.
    """
    if not math.isfinite(budget_ms) or budget_ms < 0:
        msg = f"the budget is {budget_ms}; give a finite number of milliseconds, 0 or more"
        raise ConfigError(msg)
    for depth in range(num_blocks, 0, -1):
        if latency_ms(depth) <= budget_ms:
            return depth
    fastest = latency_ms(1)
    msg = f"budget {budget_ms} ms is below the {fastest:g} ms that one block takes; allow at least {fastest:g} ms"
    raise ConfigError(msg)
