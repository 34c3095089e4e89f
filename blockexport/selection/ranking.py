"""The order in which blocks are kept, and what a request may not go below."""

from collections.abc import Sequence

from blockexport.core.scores import BlockScores
from blockexport.errors import MaskError


def rank_blocks(scores: BlockScores) -> tuple[int, ...]:
    """All blocks, the most needed first: the protected ones, then by falling score.

    Of equal scores the earlier block comes first: the result is then the same everywhere, and ties spare the blocks
    next to the embedding, which models miss most.
    """
    order = sorted(range(scores.num_blocks), key=lambda i: (i not in scores.protected, -scores.scores[i], i))
    return tuple(order)


def check_depths(depths: Sequence[int], scores: BlockScores, min_depth: int) -> None:
    """Refuse depths that cannot hold the protected blocks or go below the minimum.

    Raises:
        MaskError: a depth is too small, or the minimum itself is impossible.
    """
    if not 1 <= min_depth <= scores.num_blocks:
        msg = f"min_depth is {min_depth}; give 1..{scores.num_blocks}, the model has {scores.num_blocks} blocks"
        raise MaskError(msg)
    smallest = min(depths, default=scores.num_blocks)
    if smallest < min_depth:
        msg = f"depth {smallest} is below min_depth {min_depth}; ask for at least {min_depth} blocks or lower min_depth"
        raise MaskError(msg)
    if smallest < len(scores.protected):
        msg = (
            f"depth {smallest} cannot hold the {len(scores.protected)} protected blocks {sorted(scores.protected)}; "
            f"ask for at least {len(scores.protected)} blocks or protect fewer"
        )
        raise MaskError(msg)
