"""Sequential: the first blocks, whatever their scores."""

from collections.abc import Sequence

from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.scores import BlockScores


def select_sequential(scores: BlockScores, depths: Sequence[int], notes: Sequence[str] = ()) -> DepthLadder:
    """Keep the protected blocks and, of the others, the first ones; scores are not looked at."""
    order = sorted(range(scores.num_blocks), key=lambda i: (i not in scores.protected, i))
    masks = [DepthMask.from_kept(order[:depth], scores.num_blocks) for depth in depths]
    return DepthLadder.from_masks(masks, strategy="sequential", notes=notes)
