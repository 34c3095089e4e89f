"""Which shapes are measured, and how often."""

from dataclasses import dataclass

from blockexport.core.latency_fit import Phase
from blockexport.core.model import ModelKind

_BATCHES = (1, 2, 4)
_LENGTHS = (16, 64, 128, 256, 512, 1024)
_MAX_PREFILL_TOKENS = 1024  # of all rows together; beyond it a few cells would take most of the time
# Few shapes, but each coefficient of the model shows in some pair of them: length at one row, rows at one length.
_QUICK_PREFILL = ((1, 16), (1, 64), (1, 256), (2, 64), (4, 16), (4, 64))
_QUICK_DECODE = ((1, 16), (1, 256), (2, 64), (4, 16), (4, 256))


@dataclass(frozen=True, slots=True)
class GridCell:
    """One shape, measured for every level.

    Attributes:
        phase: what is run.
        batch: rows.
        new_tokens: tokens fed per row: the prompt length, 1 for decode, 0 for single-pass models.
        kv_tokens: tokens per row in the cache before.
    """

    phase: Phase
    batch: int
    new_tokens: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Effort:
    """How much measuring is done.

    Attributes:
        repeats: timed calls for each cell and level.
        warmup: untimed calls before each visit of a cell.
        sweeps: visits of each cell; the repeats are spread over them, so that a slow minute does not hit one cell only.
        lead: untimed calls before the timed ones of each turn of a level.
        burst: timed calls of a turn.
        time_limit_s: measuring stops after this time, with fewer repeats or cells.
    """

    repeats: int
    warmup: int
    sweeps: int
    lead: int
    burst: int
    time_limit_s: float


QUICK = Effort(repeats=12, warmup=2, sweeps=2, lead=1, burst=3, time_limit_s=20.0)
FULL = Effort(repeats=40, warmup=2, sweeps=4, lead=1, burst=5, time_limit_s=600.0)


def build_grid(kind: ModelKind, context_tokens: int, *, quick: bool) -> tuple[GridCell, ...]:
    """The cells for one kind of model, cheapest first, so that a time limit costs the dearest cells.

    Args:
        kind: decoders are measured in prefill and decode, all others in whole passes.
        context_tokens: lengths above it are cut down to it; 0 means no limit.
        quick: few cells instead of all.
    """
    if kind != "decoder":
        return tuple(GridCell("forward", batch, 0, 0) for batch in _BATCHES)
    everything = tuple((batch, length) for batch in _BATCHES for length in _LENGTHS)
    prefill = {
        GridCell("prefill", batch, _clip(length, context_tokens), 0)
        for batch, length in (_QUICK_PREFILL if quick else everything)
        if batch * length <= _MAX_PREFILL_TOKENS
    }
    # The token of the step itself takes one position of the context.
    decode = {
        GridCell("decode", batch, 1, _clip(length, context_tokens, room=1))
        for batch, length in (_QUICK_DECODE if quick else everything)
    }
    return tuple(sorted(prefill | decode, key=lambda c: (c.batch * c.new_tokens, c.batch, c.kv_tokens, c.phase)))


def _clip(length: int, context_tokens: int, room: int = 0) -> int:
    return min(length, context_tokens - room) if context_tokens else length
