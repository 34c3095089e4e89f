"""The levels as decisions see them: depths, and what each is worth."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from blockexport.core.quality import Quality
from blockexport.errors import ConfigError, RequestError
from blockexport.routing.contract import Contract
from blockexport.routing.frontier import Frontier, frontier
from blockexport.routing.router import RoutableLevel


@dataclass(frozen=True)
class Ladder:
    """Levels by index, deepest first.

    Attributes:
        names: of the levels.
        depths: kept blocks, falling.
        worth: by task tag, the worth of a token of each level, from 0 to 1, never rising down the ladder; the key None
            is for requests without a tag.
    """

    names: tuple[str, ...]
    depths: tuple[int, ...]
    worth: Mapping[str | None, tuple[float, ...]]

    def __post_init__(self) -> None:
        if not self.depths or list(self.depths) != sorted(set(self.depths), reverse=True):
            msg = f"depths are {list(self.depths)}; give at least one, deepest first, each once"
            raise ConfigError(msg)
        for tag, values in self.worth.items():
            if len(values) != len(self.depths) or not all(0 <= value <= 1 for value in values):
                msg = f"worth of {tag or 'any task'} is {list(values)}; give one number from 0 to 1 for each level"
                raise ConfigError(msg)

    @classmethod
    def of(cls, levels: Sequence[RoutableLevel]) -> Self:
        """Of the levels of a bundle.

        Worth is the first metric of the bundle for which higher is better; its groups (`metric/group`) are the tags.
        Without such a metric it is the share of blocks, which says no more than that deeper is better.
        """
        ordered = sorted(levels, key=lambda level: -level.depth)
        depths = tuple(level.depth for level in ordered)
        found = [level.quality for level in ordered if level.quality is not None]
        metric = _judged_by(found[0]) if len(found) == len(ordered) and found else None
        if metric is None:
            worth: dict[str | None, tuple[float, ...]] = {None: tuple(depth / depths[0] for depth in depths)}
        else:
            tags = {None: metric} | {n.partition("/")[2]: n for n in found[0].metrics if n.startswith(f"{metric}/")}
            worth = {tag: _falling([quality.metrics[name].value for quality in found]) for tag, name in tags.items()}
        return cls(tuple(level.name for level in ordered), depths, worth)

    @cached_property
    def _negative_depths(self) -> tuple[int, ...]:
        return tuple(-depth for depth in self.depths)

    def deepest_within(self, limit: float) -> int:
        """Index of the deepest level whose depth is within a limit; the number of levels if there is none."""
        return bisect_left(self._negative_depths, -limit)

    def frontier_of(self, contract: Contract) -> Frontier:
        """Which level a price asks for, for a request.

        Raises:
            RequestError: the task tag is unknown.
        """
        return frontier(self.depths, self.worth_of(contract))

    def worth_of(self, contract: Contract) -> tuple[float, ...]:
        """What each level is worth to a request.

        Raises:
            RequestError: the task tag is unknown.
        """
        if contract.task not in self.worth:
            known = ", ".join(tag for tag in self.worth if tag) or "none"
            msg = f"task {contract.task!r} was not judged in this bundle; name one of {known}, or none"
            raise RequestError(msg)
        return self.worth[contract.task]

    def shallowest_for(self, contract: Contract) -> int:
        """Index of the shallowest level that keeps the quality floor.

        Raises:
            RequestError: the task tag is unknown, or no level is good enough.
        """
        worth, floor = self.worth_of(contract), contract.min_quality
        good = [index for index, value in enumerate(worth) if floor is None or value >= floor]
        if not good:
            msg = f"no level has the quality {floor:g}, the best has {worth[0]:.4g}; lower min_quality"
            raise RequestError(msg)
        return good[-1]


def _judged_by(quality: Quality) -> str | None:
    plain = {name: metric for name, metric in quality.metrics.items() if "/" not in name}
    return next((name for name, metric in plain.items() if metric.higher_is_better), None)


def _falling(values: list[float]) -> tuple[float, ...]:
    """Each value, but no more than the one before it: noise is no reason to prefer a shallower level."""
    return tuple(max(0.0, min(1.0, *values[: index + 1])) for index in range(len(values)))
