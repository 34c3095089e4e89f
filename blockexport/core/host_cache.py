"""Where on this machine things are kept that can be made again: scores, traces, packed weights."""

import os
from pathlib import Path

from blockexport.errors import ConfigError


def default_cache_folder() -> Path:
    """`$BLOCKEXPORT_CACHE`, else `blockexport` in the user's cache folder."""
    named = os.environ.get("BLOCKEXPORT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "blockexport"


def open_cache(folder: Path | None) -> Path | None:
    """The folder, made if need be; None when the default one cannot be used, since all work does without.

    Args:
        folder: where; None for `default_cache_folder`.

    Raises:
        ConfigError: a folder was named and cannot be made or written.
    """
    chosen = folder or default_cache_folder()
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(chosen, os.W_OK) else "not writable"
    except OSError as error:
        problem = error.strerror or str(error)
    if not problem:
        return chosen
    if folder is None:
        return None
    msg = f"cannot use cache folder {folder}: {problem}; name another one, or use no cache"
    raise ConfigError(msg)
