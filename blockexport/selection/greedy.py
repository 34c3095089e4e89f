"""Greedy: take away the block that is missed least, measure again, and go on.

Scores of single blocks say little of what happens when several go; measuring the remaining model after each removal
does (SLEB, https://arxiv.org/abs/2402.09025).
"""

from collections.abc import Sequence

from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.scores import BlockScores
from blockexport.selection.measured import Objective, ProgressCallback, Removal, measure, removal_note


def select_greedily(
    scores: BlockScores,
    depths: Sequence[int],
    objective: Objective,
    *,
    notes: Sequence[str] = (),
    on_progress: ProgressCallback | None = None,
) -> DepthLadder:
    """Remove blocks one by one from the full model; the sets met at `depths` are the levels.

    Of equal candidates the latest block goes, so that ties keep the earlier index as in every strategy.

    Args:
        scores: only for the number of blocks and the protected ones.
        depths: distinct counts, deepest first.
        objective: asked once for each candidate, from the last block to the first, the order in which
            `models.objective` reuses most of what it has computed.
        notes: to put into the ladder before the removal order.
        on_progress: called with (candidates tried, candidates in all).

    Raises:
        ScoresError: the objective gives NaN or infinity.
    """
    mask = DepthMask.full(scores.num_blocks)
    free = scores.num_blocks - len(scores.protected)
    rounds = scores.num_blocks - min(depths)
    total = sum(free - done for done in range(rounds))
    tried = 0
    levels = [mask] if mask.depth in depths else []
    removals: list[Removal] = []
    for _ in range(rounds):
        values: dict[int, float] = {}
        for block in reversed(mask.kept):
            if block in scores.protected:
                continue
            values[block] = measure(objective, mask.without(block))
            tried += 1
            if on_progress is not None:
                on_progress(tried, total)
        # The candidates were asked from the last block on, and min() takes the first of equals.
        least = min(values, key=lambda block: values[block])
        mask = mask.without(least)
        removals.append(Removal(least, values[least]))
        if mask.depth in depths:
            levels.append(mask)
    said = [removal_note(removals)] if removals else []
    return DepthLadder.from_masks(levels, strategy="greedy", notes=[*notes, *said])
