"""Which precision each level of a ladder is built in."""

from collections.abc import Mapping, Sequence

from blockexport.core.masks import DepthLadder
from blockexport.core.precision import FP32, Precision
from blockexport.errors import ConfigError


def level_precisions(asked: Precision | Mapping[str, Precision], ladder: DepthLadder) -> dict[str, Precision]:
    """A precision for each level, in the ladder's order.

    Args:
        asked: one for all, or by level name; levels left out are fp32.
        ladder: the levels.

    Raises:
        ConfigError: a name is no level of the ladder.
    """
    names = [level.name for level in ladder.levels]
    if isinstance(asked, Precision):
        return dict.fromkeys(names, asked)
    unknown = sorted(set(asked) - set(names))
    if unknown:
        msg = f"a precision is given for {', '.join(unknown)}, but the ladder has {', '.join(names)}; name its levels"
        raise ConfigError(msg)
    return {name: asked.get(name, FP32) for name in names}


def read_precisions(stated: str | Mapping[str, str]) -> Precision | dict[str, Precision]:
    """What a recipe states: one for all levels, or by level name.

    Raises:
        ConfigError: a text names no precision.
    """
    if isinstance(stated, str):
        return Precision.parse(stated)
    return {level: Precision.parse(text) for level, text in stated.items()}


def parse_precisions(entries: Sequence[str]) -> Precision | dict[str, Precision]:
    """What a command line says: `int4` for all levels, or `d16=bf16` and `d8=int4g32` for single ones.

    Raises:
        ConfigError: an entry is neither, or both kinds are mixed, or a level is named twice.
    """
    named = [entry.partition("=") for entry in entries]
    if len(entries) == 1 and not named[0][1]:
        return Precision.parse(entries[0])
    stated = {level: text for level, equals, text in named if equals}
    if len(stated) < len(entries):
        msg = f"precisions are {', '.join(entries)}; give one for all levels, or LEVEL=PRECISION once for each"
        raise ConfigError(msg)
    return read_precisions(stated)
