"""Threshold: the blocks whose score reaches a share of the highest score."""

import math
from collections.abc import Sequence

from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.scores import BlockScores
from blockexport.errors import ConfigError
from blockexport.selection.ranking import rank_blocks


def select_by_threshold(
    scores: BlockScores, thresholds: Sequence[float], min_depth: int, notes: Sequence[str] = ()
) -> DepthLadder:
    """Keep what scores at least `threshold * max`, the maximum being over the unprotected blocks; a level each.

    A threshold that no block reaches (also any threshold below 1 when all scores are negative) keeps the protected
    blocks, and the best ones up to `min_depth`. The ladder's notes say when that happens, when everything is kept,
    and when two thresholds keep the same blocks.

    Raises:
        ConfigError: there is no threshold, or one is not finite.
    """
    if not thresholds or not all(math.isfinite(threshold) for threshold in thresholds):
        msg = f"thresholds are {list(thresholds)}; give at least one finite number, such as 0.5 for half the maximum"
        raise ConfigError(msg)
    masks: dict[DepthMask, float] = {}
    said = list(notes)
    for threshold in sorted(set(thresholds)):
        mask, note = _mask_at(scores, threshold, min_depth)
        if note:
            said.append(note)
        if mask in masks:
            said.append(f"threshold {threshold} keeps the same blocks as {masks[mask]} and makes no level of its own")
        else:
            masks[mask] = threshold
    return DepthLadder.from_masks(list(masks), strategy="threshold", notes=said)


def _mask_at(scores: BlockScores, threshold: float, min_depth: int) -> tuple[DepthMask, str]:
    """The mask, and what is to be said of it."""
    num_blocks, protected = scores.num_blocks, scores.protected
    measured = [i for i in range(num_blocks) if i not in protected]
    if not measured:
        return DepthMask.full(num_blocks), "all blocks are protected, so every threshold keeps everything"
    highest = max(scores.scores[i] for i in measured)
    reached = [i for i in measured if scores.scores[i] >= threshold * highest]
    depth = len(protected) + len(reached)
    kept = rank_blocks(scores)[: max(depth, min_depth)]
    mask = DepthMask.from_kept(kept, num_blocks)
    if not reached:
        return mask, f"threshold {threshold} keeps nothing by itself; kept {list(mask.kept)}, protected or best"
    if depth < min_depth:
        return mask, f"threshold {threshold} keeps {depth} blocks, fewer than min_depth; the best {min_depth} stay"
    if depth == num_blocks:
        return mask, f"threshold {threshold} keeps all {num_blocks} blocks"
    return mask, ""
