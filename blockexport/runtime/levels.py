"""What there is to choose from."""

from dataclasses import dataclass

from blockexport.bundle.manifest import Manifest
from blockexport.core.quality import Quality


@dataclass(frozen=True, slots=True)
class Level:
    """One depth of a loaded bundle; `quality` is None when the build measured none."""

    name: str
    depth: int
    kept: tuple[int, ...]
    quality: Quality | None


def levels_of(manifest: Manifest) -> tuple[Level, ...]:
    """The levels of a bundle, deepest first."""
    return tuple(
        Level(entry.name, entry.depth, entry.kept, Quality.from_json(entry.quality) if entry.quality else None)
        for entry in manifest.levels
    )
