"""Top-k: the blocks with the highest scores."""

from collections.abc import Sequence

from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.scores import BlockScores
from blockexport.selection.ranking import rank_blocks


def select_top_k(scores: BlockScores, depths: Sequence[int], notes: Sequence[str] = ()) -> DepthLadder:
    """Keep the best `depth` blocks for each depth; prefixes of one ranking, hence nested."""
    ranking = rank_blocks(scores)
    masks = [DepthMask.from_kept(ranking[:depth], scores.num_blocks) for depth in depths]
    return DepthLadder.from_masks(masks, strategy="top_k", notes=notes)
