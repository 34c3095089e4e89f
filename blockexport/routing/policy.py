"""What a policy is, and which there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError
from blockexport.routing.decision import Choice
from blockexport.routing.estimate import LevelEstimate
from blockexport.routing.policies.adaptive import SeedAdaptive
from blockexport.routing.policies.deepest_fit import DeepestFit
from blockexport.routing.policies.fixed import Fixed
from blockexport.routing.policies.per_request import SeedPerRequest


class RoutingPolicy(Protocol):
    """A pure rule: the same candidates and budget give the same choice."""

    @property
    def name(self) -> str:
        """Name in the registry."""
        ...

    def choose(self, candidates: Sequence[LevelEstimate], budget: LatencyBudget | None, /) -> Choice:
        """Pick from candidates, deepest first, at least one, all of sufficient quality."""
        ...


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """An entry of the registry.

    Attributes:
        name: what callers write.
        argument: what the text behind `name:` means; "" when there must be none.
        make: the policy from that text.
    """

    name: str
    argument: str
    make: Callable[[str], RoutingPolicy]

    @property
    def spelling(self) -> str:
        """How callers write it, e.g. `fixed:LEVEL`."""
        return f"{self.name}:{self.argument}" if self.argument else self.name


POLICIES: tuple[PolicyInfo, ...] = (
    PolicyInfo("deepest-fit", "", lambda _: DeepestFit()),
    PolicyInfo("seed-adaptive", "", lambda _: SeedAdaptive()),
    PolicyInfo("seed-per-request", "COMPLEXITY", SeedPerRequest),
    PolicyInfo("fixed", "LEVEL", Fixed),
)


def resolve_policy(policy: str | RoutingPolicy) -> RoutingPolicy:
    """A policy by name, as `name` or `name:argument`; a policy object is returned as it is.

    Raises:
        ConfigError: the name is unknown, or its argument missing, superfluous or not allowed.
    """
    if not isinstance(policy, str):
        return policy
    name, _, argument = policy.partition(":")
    for info in POLICIES:
        if info.name == name and bool(argument) == bool(info.argument):
            return info.make(argument)
    msg = f"no routing policy {policy!r}; write one of {', '.join(info.spelling for info in POLICIES)}"
    raise ConfigError(msg)
