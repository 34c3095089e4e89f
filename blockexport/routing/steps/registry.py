"""Policies of many requests by name."""

from collections.abc import Callable

from blockexport.errors import ConfigError
from blockexport.routing.ladder import Ladder
from blockexport.routing.policies.adaptive import SeedAdaptive
from blockexport.routing.policies.deepest_fit import DeepestFit
from blockexport.routing.policies.per_request import SeedPerRequest
from blockexport.routing.step import StepPolicy
from blockexport.routing.steps.at_admission import AtAdmission
from blockexport.routing.steps.fixed import FixedDepth
from blockexport.routing.steps.priced import Priced
from blockexport.routing.steps.slack_fit import SlackFit

STEP_POLICIES: dict[str, Callable[[], StepPolicy]] = {
    "priced": Priced,
    "slackfit": SlackFit,
    "deepest-fit": lambda: AtAdmission(DeepestFit()),
    "seed-adaptive": lambda: AtAdmission(SeedAdaptive(), order="fifo", sheds=False, sees_now=False),
    "seed-per-request": lambda: AtAdmission(SeedPerRequest("medium"), order="fifo", sheds=False, sees_now=False),
    "full-depth": lambda: FixedDepth(0, order="fifo", sheds=False),
    "shallowest": lambda: FixedDepth(-1, order="fifo", sheds=False),
}
"""Those that need nothing but their name; beside them `fixed:LEVEL`."""


def resolve_step_policy(name: str, ladder: Ladder) -> StepPolicy:
    """A policy by name.

    Raises:
        ConfigError: there is no such policy, or no such level.
    """
    kind, _, level = name.partition(":")
    if kind == "fixed" and level in ladder.names:
        return FixedDepth(ladder.names.index(level))
    if name not in STEP_POLICIES:
        known = [*STEP_POLICIES, *(f"fixed:{level}" for level in ladder.names)]
        msg = f"no policy {name!r} for many requests; write one of {', '.join(known)}"
        raise ConfigError(msg)
    return STEP_POLICIES[name]()
