"""Beam: several combinations of removed blocks stay in the race, and the best one found some removals on decides.

A block that is missed least now may stand in the way of the best combination later. Greedy selection cannot go back on
it; a beam (Lowerre, "The HARPY speech recognition system", 1976) goes on with the `width` best combinations of each
size and settles what to remove only after it has seen where they lead.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.scores import BlockScores
from blockexport.selection.measured import Objective, ProgressCallback, Removal, measure, removal_note

DEFAULT_WIDTH = 3


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A combination and the removals that led to it since the last decision."""

    mask: DepthMask
    removals: tuple[Removal, ...] = ()

    @property
    def value(self) -> float:
        return self.removals[-1].value


def select_by_beam(
    scores: BlockScores,
    depths: Sequence[int],
    objective: Objective,
    *,
    width: int = DEFAULT_WIDTH,
    look: int | None = None,
    notes: Sequence[str] = (),
    on_progress: ProgressCallback | None = None,
) -> DepthLadder:
    """Remove blocks from the full model, several at a decision; the sets met at `depths` are the levels.

    Each decision starts from the last one, so levels are nested. Without `look` a decision reaches to the next level:
    the deepest level is the best combination found, the one below it the best found within it, and so on. With `look`
    it reaches that many removals on, and a level on the way is what the best combination at the end came through: a
    longer look favours the shallow levels. Of equal combinations the one that keeps earlier blocks is preferred. No
    combination is measured twice; a width or a look of 1 is greedy selection.

    Args:
        scores: only for the number of blocks and the protected ones.
        depths: distinct counts, deepest first.
        objective: asked once for each combination; those that begin with the same blocks follow one another, the order
            in which `models.objective` reuses most of what it has computed.
        width: combinations of each size to go on with, at least 1.
        look: removals to a decision, at least 1; None for as many as there are to the next level.
        notes: to put into the ladder before the removal order.
        on_progress: called with (combinations settled, combinations at most).

    Raises:
        ScoresError: the objective gives NaN or infinity.
    """
    goals = list(_goals(scores.num_blocks, depths, look))
    search = _Search(scores, objective, width, goals, on_progress)
    mask = DepthMask.full(scores.num_blocks)
    levels = [mask] if mask.depth in depths else []
    removals: list[Removal] = []
    for goal in goals:
        for removal in search.best(mask, goal):
            mask = mask.without(removal.block)
            removals.append(removal)
            if mask.depth in depths:
                levels.append(mask)
    said = [f"{search.num_measured} combinations measured, {width} kept at each size", removal_note(removals)]
    return DepthLadder.from_masks(levels, strategy="beam", notes=[*notes, *(said if removals else ())])


def _goals(num_blocks: int, depths: Sequence[int], look: int | None) -> Iterator[int]:
    """The depth that each decision reaches, deepest first."""
    if look is None:
        yield from (depth for depth in depths if depth < num_blocks)
        return
    depth = num_blocks
    while depth > min(depths):
        depth = max(depth - look, min(depths))
        yield depth


class _Search:
    """The decisions of one selection, and how far they are."""

    def __init__(
        self,
        scores: BlockScores,
        objective: Objective,
        width: int,
        goals: Sequence[int],
        on_progress: ProgressCallback | None,
    ) -> None:
        self._protected = frozenset(scores.protected)
        self._objective = objective
        self._width = width
        self._on_progress = on_progress
        self._settled = 0
        self._total = sum(
            self._most_combinations(begin, depth)
            for begin, goal in itertools.pairwise([scores.num_blocks, *goals])
            for depth in range(begin - 1, goal - 1, -1)
        )
        self.num_measured = 0

    def best(self, mask: DepthMask, goal: int) -> tuple[Removal, ...]:
        """The removals that lead from `mask` to the best combination of `goal` blocks found."""
        beam = [_Candidate(mask)]
        while beam[0].mask.depth > goal:
            beam = self._shrink(beam, mask.depth)
        return beam[0].removals

    def _shrink(self, beam: Sequence[_Candidate], begin: int) -> list[_Candidate]:
        """The best combinations of one block less, best first."""
        parents: dict[DepthMask, tuple[_Candidate, int]] = {}
        for parent in beam:
            for block in parent.mask.kept:
                if block not in self._protected:
                    # The beam is sorted, so the first parent of a combination is the best.
                    parents.setdefault(parent.mask.without(block), (parent, block))
        # For one parent this is from the last block on, as in greedy selection.
        ordered = sorted(parents, key=DepthMask.to_bools, reverse=True)
        most = self._most_combinations(begin, beam[0].mask.depth - 1)
        found = []
        for count, mask in enumerate(ordered, start=1):
            parent, block = parents[mask]
            removal = Removal(block, measure(self._objective, mask))
            found.append(_Candidate(mask, (*parent.removals, removal)))
            self.num_measured += 1
            if self._on_progress is not None:
                self._on_progress(self._settled + most * count // len(ordered), self._total)
        self._settled += most
        # Sorting is stable: of equals the one with earlier blocks stays in front.
        return sorted(found, key=lambda candidate: candidate.value)[: self._width]

    def _most_combinations(self, begin: int, depth: int) -> int:
        """How many combinations of `depth` blocks a decision that starts from `begin` blocks can meet."""
        free, removed = begin - len(self._protected), begin - depth
        parents = min(self._width, math.comb(free, removed - 1))
        return min(parents * (free - removed + 1), math.comb(free, removed))
