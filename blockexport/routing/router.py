"""The first router: one request, one level, decided before it starts."""

import math
from collections.abc import Sequence
from typing import Protocol

from blockexport.core.latency import LatencyBudget, LatencyProfile
from blockexport.core.quality import Quality
from blockexport.errors import ConfigError, ProfileError, RequestError
from blockexport.routing.decision import Alternative, Choice, RoutingDecision
from blockexport.routing.estimate import LevelEstimate, estimate
from blockexport.routing.policy import RoutingPolicy, resolve_policy
from blockexport.routing.request import RoutingRequest


class RoutableLevel(Protocol):
    """A level as a loaded bundle lists it."""

    @property
    def name(self) -> str:
        """Name of the level."""
        ...

    @property
    def depth(self) -> int:
        """Its kept blocks."""
        ...

    @property
    def quality(self) -> Quality | None:
        """What was measured on its engine, if anything."""
        ...


def plan(
    profile: LatencyProfile,
    levels: Sequence[RoutableLevel],
    request: RoutingRequest,
    budget: LatencyBudget | None,
    policy: str | RoutingPolicy = "deepest-fit",
    min_quality: float | None = None,
) -> RoutingDecision:
    """Choose a level. Pure: the same arguments give the same decision.

    Args:
        profile: of the bundle, on this host.
        levels: of the same bundle, in any order.
        request: size of the request.
        budget: limits to keep; None for no limit.
        policy: a name of the registry, or a policy.
        min_quality: floor on the primary metric of a level, a ceiling where lower is better; levels that were not
            judged do not meet it.

    Returns:
        The decision; when no level keeps the budget it says `feasible=False`, and the caller decides what that means.

    Raises:
        RequestError: the request does not fit the model, or no level has the quality asked for.
        ConfigError: an unknown policy, no levels, or a floor that is not finite.
        ProfileError: a level is not in the profile.
    """
    _check_request(profile, request)
    rule = resolve_policy(policy)
    ordered = _measured(profile, levels)
    good = {level.name for level in ordered if _meets_floor(level, min_quality)}
    if not good:
        msg = f"no level has the quality {min_quality:g}; {_qualities(ordered)}; lower min_quality"
        raise RequestError(msg)
    vision = _vision_estimate(profile, request)
    estimates = [estimate(profile.fit, level.name, level.depth, request, vision) for level in ordered]
    choice = rule.choose([candidate for candidate in estimates if candidate.level in good], budget)
    others = [
        Alternative(e.level, e.depth, e.predicted_ms, e.bound_ms, e.level in good and not e.misses(budget))
        for e in estimates
        if e.level != choice.picked.level
    ]
    return _decide(choice, rule.name, choice.picked.misses(budget), tuple(others))


def _decide(
    choice: Choice, policy: str, misses: tuple[str, ...], alternatives: tuple[Alternative, ...]
) -> RoutingDecision:
    picked: LevelEstimate = choice.picked
    return RoutingDecision(
        level=picked.level,
        depth=picked.depth,
        predicted_ms=picked.predicted_ms,
        bound_ms=picked.bound_ms,
        ttft_ms=picked.ttft_ms,
        tpot_ms=picked.tpot_ms,
        feasible=not misses,
        reason=f"{choice.reason}; its bound misses: {', '.join(misses)}" if misses else choice.reason,
        policy=policy,
        ttft_bound_ms=picked.ttft_bound_ms,
        tpot_bound_ms=picked.tpot_bound_ms,
        alternatives=alternatives,
        vision_ms=picked.vision_ms,
    )


def _vision_estimate(profile: LatencyProfile, request: RoutingRequest) -> LevelEstimate | None:
    """What reading the pictures takes, at the level of the vision side that the request names."""
    if not request.num_crops:
        return None
    side = profile.vision
    if side is None:
        msg = f"{request.num_crops} crops of pictures, but the profile is of a model that reads none; ask for 0"
        raise RequestError(msg)
    name = request.vision_level or next(iter(side.levels))
    if name not in side.levels:
        msg = f"no vision level {name!r}; the profile has {', '.join(side.levels)}"
        raise RequestError(msg)
    return estimate(side.fit, name, side.levels[name], RoutingRequest(prompt_tokens=0, batch=request.num_crops))


def _check_request(profile: LatencyProfile, request: RoutingRequest) -> None:
    if profile.kind != "decoder" and request.new_tokens:
        msg = f"{request.new_tokens} new tokens asked of a single-pass {profile.kind} model; ask for 0"
        raise RequestError(msg)
    if profile.kind != "vision" and request.prompt_tokens < 1:
        msg = f"an empty prompt for a {profile.kind} model; give at least one token"
        raise RequestError(msg)
    total = request.prompt_tokens + request.new_tokens
    if profile.context_tokens and total > profile.context_tokens:
        msg = (
            f"{request.prompt_tokens} prompt and {request.new_tokens} new tokens make {total}, the model's context "
            f"holds {profile.context_tokens}; shorten the prompt or ask for fewer tokens"
        )
        raise RequestError(msg)


def _measured(profile: LatencyProfile, levels: Sequence[RoutableLevel]) -> list[RoutableLevel]:
    """The levels, deepest first, each known to the profile at the same depth."""
    if not levels:
        msg = "no levels to choose from; a bundle has at least one"
        raise ConfigError(msg)
    for level in levels:
        if profile.levels.get(level.name) != level.depth:
            known = ", ".join(f"{name} (depth {depth})" for name, depth in profile.levels.items())
            msg = f"level {level.name} (depth {level.depth}) is not in the profile, which has {known}; profile again"
            raise ProfileError(msg)
    return sorted(levels, key=lambda level: -level.depth)


def _meets_floor(level: RoutableLevel, min_quality: float | None) -> bool:
    if min_quality is None:
        return True
    if not math.isfinite(min_quality):
        msg = f"min_quality is {min_quality}; give a finite number, or none"
        raise ConfigError(msg)
    quality = level.quality
    return quality is not None and bool(quality.metrics) and quality.primary[1].is_at_least(min_quality)


def _qualities(levels: Sequence[RoutableLevel]) -> str:
    """What each level has, for an error message."""
    known = [(level.name, level.quality.primary) for level in levels if level.quality and level.quality.metrics]
    return ", ".join(f"{name} has {metric} {value.value:.4g}" for name, (metric, value) in known) or "none was judged"
