"""The one entry to all strategies."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from blockexport.core.masks import DepthLadder
from blockexport.core.scores import BlockScores
from blockexport.errors import ConfigError, ScoresError
from blockexport.selection.beam import DEFAULT_WIDTH, select_by_beam
from blockexport.selection.depths import Depth, resolve_depths
from blockexport.selection.greedy import select_greedily
from blockexport.selection.measured import Objective, ProgressCallback
from blockexport.selection.ranking import check_depths
from blockexport.selection.sequential import select_sequential
from blockexport.selection.threshold import select_by_threshold
from blockexport.selection.top_k import select_top_k

if TYPE_CHECKING:
    from torch import nn

    from blockexport.models.loaded import LoadedModel

STRATEGIES: tuple[str, ...] = ("top_k", "threshold", "sequential", "greedy", "beam")


def select(
    scores: BlockScores,
    *,
    depths: Sequence[Depth] | None = None,
    strategy: str = "top_k",
    threshold: float | Sequence[float] | None = None,
    min_depth: int = 1,
    model: "LoadedModel | nn.Module | None" = None,
    data: Any = None,
    objective: Objective | None = None,
    beam_width: int | None = None,
    beam_depth: int | None = None,
    on_progress: ProgressCallback | None = None,
) -> DepthLadder:
    """Choose the blocks that stay at each depth.

    Levels are nested and deepest first, protected blocks stay in all of them, and of equal blocks the earlier stays.

    Args:
        scores: importance per block; only `top_k` and `threshold` use more than their number and the protected ones.
        depths: counts (int) or fractions (float above 0 and up to 1, rounded half up).
        strategy: one of `STRATEGIES`; each is explained in its own file.
        threshold: for `threshold`, in place of `depths`: one share of the highest score, or several. Without it
            `depths` is taken as the thresholds.
        min_depth: no level is shallower.
        model: for `greedy` and `beam` without `objective`.
        data: for the same: what `models.objective.kl_objective` measures divergence on. Scores of a vision side choose
            its blocks, by what the whole model then says.
        objective: for `greedy` and `beam`: how bad the model is under a mask.
        beam_width: for `beam`: combinations of each size that it goes on with; 3 when None.
        beam_depth: for `beam`: removals that one decision looks ahead; to the next level when None.
        on_progress: for `greedy` and `beam`: called with (candidates tried, candidates in all).

    Raises:
        MaskError: a depth that cannot be, or that does not hold the protected blocks or `min_depth`.
        ConfigError: an unknown strategy, or an argument that the strategy needs is missing.
        ScoresError: `greedy` or `beam` got a model that is not the scored one.
    """
    if strategy not in STRATEGIES:
        msg = f"unknown strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}"
        raise ConfigError(msg)
    _check_beam(strategy, beam_width, beam_depth)
    if strategy == "threshold":
        check_depths((), scores, min_depth)
        notes = ("depths are not used by strategy 'threshold'",) if depths and threshold is not None else ()
        return _of(scores, select_by_threshold(scores, _thresholds(threshold, depths), min_depth, notes))
    if threshold is not None:
        msg = f"strategy {strategy!r} takes no threshold; give depths, or use strategy 'threshold'"
        raise ConfigError(msg)
    counts, merged = resolve_depths(depths or (), scores.num_blocks)
    check_depths(counts, scores, min_depth)
    if strategy == "top_k":
        return _of(scores, select_top_k(scores, counts, merged))
    if strategy == "sequential":
        return _of(scores, select_sequential(scores, counts, merged))
    chosen = objective or _default_objective(scores, strategy, model, data)
    if strategy == "greedy":
        return _of(scores, select_greedily(scores, counts, chosen, notes=merged, on_progress=on_progress))
    width = DEFAULT_WIDTH if beam_width is None else beam_width
    ladder = select_by_beam(scores, counts, chosen, width=width, look=beam_depth, notes=merged, on_progress=on_progress)
    return _of(scores, ladder)


def _check_beam(strategy: str, width: int | None, depth: int | None) -> None:
    for name, value in (("beam_width", width), ("beam_depth", depth)):
        if value is not None and strategy != "beam":
            msg = f"strategy {strategy!r} takes no {name}; leave it out, or use strategy 'beam'"
            raise ConfigError(msg)
        if value is not None and value < 1:
            msg = f"{name} is {value}; give at least 1"
            raise ConfigError(msg)


def _of(scores: BlockScores, ladder: DepthLadder) -> DepthLadder:
    """The ladder with the digest of the model it was chosen for."""
    return replace(ladder, model=scores.model)


def _thresholds(threshold: float | Sequence[float] | None, depths: Sequence[Depth] | None) -> tuple[float, ...]:
    given: Any = depths if threshold is None else threshold
    if given is None:
        msg = "strategy 'threshold' needs a threshold; give a share of the highest score, such as 0.5"
        raise ConfigError(msg)
    values = given if isinstance(given, Iterable) else (given,)
    return tuple(float(value) for value in values)


def _default_objective(
    scores: BlockScores, strategy: str, model: "LoadedModel | nn.Module | None", data: Any
) -> Objective:
    if model is None or data is None:
        msg = f"strategy {strategy!r} measures the model again after each removal; give model and data, or an objective"
        raise ConfigError(msg)
    # Every other strategy works on a scores file alone, on hosts without torch.
    from blockexport.models.loaded import as_loaded  # noqa: PLC0415
    from blockexport.models.objective import kl_objective  # noqa: PLC0415

    loaded = as_loaded(model)
    side = loaded.vision_side
    is_of_side = side is not None and scores.model == loaded.spec.vision_scores_digest
    scored = side if side is not None and is_of_side else loaded
    if scores.num_blocks != scored.num_blocks or not (is_of_side or scores.model in ("", loaded.spec.digest)):
        msg = f"the scores are of another model than {loaded.spec.name}; score this model first"
        raise ScoresError(msg)
    return kl_objective(loaded, data, vision=is_of_side)
