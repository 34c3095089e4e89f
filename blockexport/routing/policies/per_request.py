"""The seed's rule per request: depth by declared complexity, corrected by the budget. Kept to compare with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError
from blockexport.routing.decision import Choice
from blockexport.routing.estimate import LevelEstimate
from blockexport.routing.policies.adaptive import deepest_within

SEED_RATIOS: Mapping[str, float] = MappingProxyType({"simple": 0.5, "medium": 0.75, "complex": 1.0})
SEED_UNKNOWN_RATIO = 0.75


@dataclass(frozen=True, slots=True)
class SeedPerRequest:
    """Depth = int(num_blocks * ratio of the complexity), some blocks fewer for a tight budget, more for a loose one.

    Without a budget the complexity alone decides.

    Attributes:
        complexity: of the request, a key of `ratios`.
        ratios: share of the blocks by complexity.
        unknown_ratio: share for a complexity that `ratios` lacks; None refuses it. The seed has SEED_UNKNOWN_RATIO.
        tight_ms: an end-to-end limit below it takes blocks away.
        loose_ms: one above it adds blocks.
        step_blocks: how many.
        num_blocks: blocks of the full model; None takes the depth of the deepest candidate.
    """

    complexity: str
    # A factory, because dataclasses take the unhashable (before Python 3.12) mapping proxy for a mutable default.
    ratios: Mapping[str, float] = field(default_factory=lambda: SEED_RATIOS)
    unknown_ratio: float | None = None
    tight_ms: float = 50.0
    loose_ms: float = 200.0
    step_blocks: int = 2
    num_blocks: int | None = None

    def __post_init__(self) -> None:
        if self.complexity not in self.ratios and self.unknown_ratio is None:
            msg = f"complexity {self.complexity!r} is unknown; it is one of {', '.join(self.ratios)}"
            raise ConfigError(msg)
        given = [*self.ratios.values(), *([] if self.unknown_ratio is None else [self.unknown_ratio])]
        if not all(math.isfinite(ratio) and 0 < ratio <= 1 for ratio in given):
            msg = f"depth ratios {given}; each must be above 0 and at most 1"
            raise ConfigError(msg)
        if not 0 <= self.tight_ms <= self.loose_ms or self.step_blocks < 0:
            msg = (
                f"tight_ms {self.tight_ms}, loose_ms {self.loose_ms}, step_blocks {self.step_blocks}; "
                "0 <= tight_ms <= loose_ms and step_blocks >= 0 must hold"
            )
            raise ConfigError(msg)
        if self.num_blocks is not None and self.num_blocks < 1:
            msg = f"num_blocks is {self.num_blocks}; a model has at least one block"
            raise ConfigError(msg)

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "seed-per-request"

    def choose(self, candidates: Sequence[LevelEstimate], budget: LatencyBudget | None, /) -> Choice:
        """Pick from candidates, deepest first, at least one.

        Raises:
            ConfigError: the budget has no end-to-end limit.
        """
        if budget is not None and budget.e2e_ms is None:
            msg = "policy seed-per-request knows end-to-end limits only; give e2e_ms or use deepest-fit"
            raise ConfigError(msg)
        num_blocks = candidates[0].depth if self.num_blocks is None else self.num_blocks
        depth = self._depth(num_blocks, None if budget is None else budget.e2e_ms)
        picked = deepest_within(candidates, depth)
        limit = "no budget" if budget is None else f"a budget of {budget.e2e_ms:.6g} ms"
        reason = f"a {self.complexity} request with {limit} asks for depth {depth} of {num_blocks}"
        return Choice(picked, f"{reason}: {picked.level}")

    def _depth(self, num_blocks: int, e2e_ms: float | None) -> int:
        ratio = self.ratios.get(self.complexity, self.unknown_ratio)
        assert ratio is not None  # checked at construction
        depth = int(num_blocks * ratio)
        if e2e_ms is not None and e2e_ms < self.tight_ms:
            depth -= self.step_blocks
        elif e2e_ms is not None and e2e_ms > self.loose_ms:
            depth += self.step_blocks
        return max(1, min(num_blocks, depth))
