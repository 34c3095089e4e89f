"""Which blocks of a model run: one mask, one named level, and the nested ladder of levels."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, SupportsIndex

from blockexport.errors import MaskError

SCHEMA_VERSION = 1
"""Of ladder files."""

LEVEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


@dataclass(frozen=True, slots=True)
class DepthMask:
    """The blocks that stay, by original index.

    Attributes:
        kept: indices of the kept blocks, strictly ascending, at least one.
        num_blocks: blocks of the unpruned model.
    """

    kept: tuple[int, ...]
    num_blocks: int

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            msg = f"num_blocks is {self.num_blocks}; a model has at least one block"
            raise MaskError(msg)
        if not self.kept:
            msg = f"the mask skips all {self.num_blocks} blocks; keep at least one"
            raise MaskError(msg)
        if list(self.kept) != sorted(set(self.kept)):
            msg = f"kept blocks {list(self.kept)} are not distinct and ascending; use DepthMask.from_kept"
            raise MaskError(msg)
        if self.kept[0] < 0 or self.kept[-1] >= self.num_blocks:
            msg = f"kept blocks {list(self.kept)} reach outside 0..{self.num_blocks - 1}, the blocks the model has"
            raise MaskError(msg)

    @classmethod
    def full(cls, num_blocks: int) -> Self:
        """The mask that keeps everything."""
        return cls(tuple(range(num_blocks)), num_blocks)

    @classmethod
    def from_kept(cls, kept: Iterable[SupportsIndex], num_blocks: int) -> Self:
        """Build from the indices that stay, in any order."""
        return cls(_indices(kept), num_blocks)

    @classmethod
    def from_skipped(cls, skipped: Iterable[SupportsIndex], num_blocks: int) -> Self:
        """Build from the indices that go, in any order."""
        gone = _indices(skipped)
        if gone and (gone[0] < 0 or gone[-1] >= num_blocks):
            msg = f"skipped blocks {list(gone)} reach outside 0..{num_blocks - 1}; the model has {num_blocks} blocks"
            raise MaskError(msg)
        return cls(tuple(i for i in range(num_blocks) if i not in gone), num_blocks)

    @classmethod
    def from_bools(cls, flags: Iterable[Any]) -> Self:
        """Build from one flag per block, True for kept: a list, a numpy array or a torch.BoolTensor (num_blocks,)."""
        values = flags.tolist() if hasattr(flags, "tolist") else list(flags)
        if not all(isinstance(value, bool) for value in values):
            msg = f"a mask needs one bool per block, got {values}; pass indices to from_kept or from_skipped instead"
            raise MaskError(msg)
        return cls(tuple(i for i, value in enumerate(values) if value), len(values))

    @property
    def skipped(self) -> tuple[int, ...]:
        """Indices of the blocks that go, ascending."""
        kept = set(self.kept)
        return tuple(i for i in range(self.num_blocks) if i not in kept)

    @property
    def depth(self) -> int:
        """Number of kept blocks."""
        return len(self.kept)

    def to_bools(self) -> tuple[bool, ...]:
        """One flag per block, True for kept."""
        kept = set(self.kept)
        return tuple(i in kept for i in range(self.num_blocks))

    def is_subset_of(self, other: Self) -> bool:
        """Whether every block kept here is kept in `other`, of the same model size."""
        return self.num_blocks == other.num_blocks and set(self.kept) <= set(other.kept)

    def without(self, block: int) -> Self:
        """The same mask with one kept block less."""
        return type(self)(tuple(i for i in self.kept if i != block), self.num_blocks)


def _indices(values: Iterable[SupportsIndex]) -> tuple[int, ...]:
    indices = [value.__index__() for value in values]
    if len(set(indices)) != len(indices):
        msg = f"block indices {sorted(indices)} repeat; name each block once"
        raise MaskError(msg)
    return tuple(sorted(indices))


@dataclass(frozen=True, slots=True)
class DepthLevel:
    """One entry of a ladder; its name becomes part of file names."""

    name: str
    mask: DepthMask

    def __post_init__(self) -> None:
        if not re.fullmatch(LEVEL_NAME_PATTERN, self.name):
            msg = f"level name {self.name!r} is not allowed; use up to 100 letters, digits, '.', '_' and '-'"
            raise MaskError(msg)

    @property
    def depth(self) -> int:
        """Number of kept blocks."""
        return self.mask.depth

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices of the kept blocks."""
        return self.mask.kept

    def to_json(self) -> dict[str, Any]:
        """The level as the command line prints it."""
        return {
            "name": self.name,
            "depth": self.depth,
            "kept": list(self.mask.kept),
            "skipped": list(self.mask.skipped),
        }


@dataclass(frozen=True, slots=True)
class DepthLadder:
    """Levels of one model, deepest first, each keeping a strict subset of the level above.

    Nesting is what makes one KV cache serve all levels: whatever a deeper level has written is what a shallower
    level needs.

    Attributes:
        levels: at least one.
        strategy: how the masks were chosen; "given" when the caller named them.
        notes: what a reader of the ladder must know, e.g. that a threshold kept everything.
        model: digest of the model whose scores chose the masks; "" when nobody said.
    """

    levels: tuple[DepthLevel, ...]
    strategy: str = "given"
    notes: tuple[str, ...] = ()
    model: str = ""

    def __post_init__(self) -> None:
        if not self.levels:
            msg = "a ladder needs at least one level; give at least one depth"
            raise MaskError(msg)
        names = [level.name for level in self.levels]
        if len(set(names)) != len(names):
            msg = f"level names {names} repeat; give each level its own name"
            raise MaskError(msg)
        for deeper, shallower in zip(self.levels, self.levels[1:], strict=False):
            if not shallower.mask.is_subset_of(deeper.mask) or shallower.depth == deeper.depth:
                msg = (
                    f"level {shallower.name} keeps {list(shallower.kept)}, which is no strict subset of what level "
                    f"{deeper.name} keeps, {list(deeper.kept)}; the levels of a ladder must be nested, deepest first"
                )
                raise MaskError(msg)

    @classmethod
    def from_masks(cls, masks: Sequence[DepthMask], *, strategy: str = "given", notes: Sequence[str] = ()) -> Self:
        """Build from masks in any order; each level is named `d{depth}`."""
        ordered = sorted(masks, key=lambda mask: -mask.depth)
        return cls(tuple(DepthLevel(f"d{mask.depth}", mask) for mask in ordered), strategy, tuple(notes))

    @property
    def num_blocks(self) -> int:
        """Blocks of the unpruned model."""
        return self.levels[0].mask.num_blocks

    def level(self, name: str) -> DepthLevel:
        """The level of that name.

        Raises:
            MaskError: the ladder has no such level.
        """
        for level in self.levels:
            if level.name == name:
                return level
        msg = f"no level {name!r}; this ladder has {', '.join(level.name for level in self.levels)}"
        raise MaskError(msg)

    def to_json(self) -> dict[str, Any]:
        """The ladder as its file holds it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "num_blocks": self.num_blocks,
            "strategy": self.strategy,
            "notes": list(self.notes),
            "model": self.model,
            "levels": [level.to_json() for level in self.levels],
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` gave.

        Raises:
            MaskError: the value is no ladder.
        """
        try:
            version = value.get("schema_version", SCHEMA_VERSION)
            if version != SCHEMA_VERSION:
                msg = f"a ladder of schema_version {version!r}; this blockexport reads {SCHEMA_VERSION}, select again"
                raise MaskError(msg)
            num_blocks = value["num_blocks"].__index__()
            levels = tuple(
                DepthLevel(entry["name"], DepthMask.from_kept(entry["kept"], num_blocks)) for entry in value["levels"]
            )
            notes = tuple(value.get("notes", ()))
            return cls(levels, value.get("strategy", "given"), notes, value.get("model", ""))
        except (KeyError, TypeError, AttributeError) as error:
            msg = f"not a ladder file ({error!r}); write one with `blockexport select`"
            raise MaskError(msg) from error
