"""Which level a price of time asks for."""

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Frontier:
    """The levels that are best at some price for a block, deepest first, on the upper hull of worth over depth.

    They end at the level of the most worth for a block: no price makes a shallower one the best choice, for at a price
    that high not serving the request at all is better still.

    Attributes:
        levels: their indices.
        worth_per_block: what each but the last adds over the next, per block; never falling.
    """

    levels: tuple[int, ...]
    worth_per_block: tuple[float, ...]

    def at(self, price_of_block: float) -> int:
        """Index of the level that is best when each block costs this much worth."""
        return self.levels[bisect_left(self.worth_per_block, price_of_block)]


@lru_cache(maxsize=256)
def frontier(depths: tuple[int, ...], worth: tuple[float, ...]) -> Frontier:
    """The frontier of a ladder for one task."""

    def gain(deep: int, shallow: int) -> float:
        return (worth[deep] - worth[shallow]) / (depths[deep] - depths[shallow])

    # Of equal ones the shallowest, which leaves the others on the hull.
    densest = max(range(len(depths)), key=lambda level: (worth[level] / depths[level], level))
    chain = [densest]
    for level in range(densest - 1, -1, -1):
        while len(chain) > 1 and gain(level, chain[-1]) >= gain(chain[-1], chain[-2]):
            chain.pop()
        chain.append(level)
    chain.reverse()
    return Frontier(tuple(chain), tuple(gain(deep, next_) for deep, next_ in pairwise(chain)))
