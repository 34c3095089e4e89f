"""JSON and files the way every stage writes them: strict grammar, stable bytes, never half-written."""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from blockexport.errors import ConfigError

_STRING_OR_CONSTANT = re.compile(r'"(?:\\.|[^"\\])*"|-?Infinity|NaN')
# 1e999 is a number by JSON's grammar and reads as infinity in every parser that uses doubles, while Python's own
# `Infinity` is refused by strict parsers.
_NUMBERS = {"Infinity": "1e999", "-Infinity": "-1e999"}


def dump_json(value: Any, *, indent: int | None = 2) -> str:
    """Serialise to JSON that any parser reads; infinities become ±1e999.

    Raises:
        ConfigError: the value holds a NaN, which JSON cannot say.
    """

    def replace(match: re.Match[str]) -> str:
        if match[0] == "NaN":
            msg = "a NaN was to be written as JSON; no figure may be NaN, find where it came from"
            raise ConfigError(msg)
        return _NUMBERS.get(match[0], match[0])

    return _STRING_OR_CONSTANT.sub(replace, json.dumps(value, indent=indent, ensure_ascii=False))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ConfigError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}; give the path of an existing JSON file"
        raise ConfigError(msg) from error
    except ValueError as error:
        msg = f"{path} is not valid JSON ({error}); write it again with the command that made it"
        raise ConfigError(msg) from error


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` in one step: written aside, flushed to disk, renamed."""
    raw = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a result is as readable as any file the user makes.
        umask = os.umask(0)
        os.umask(umask)
        Path(aside).chmod(0o666 & ~umask)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(folder: Path) -> None:
    """Flush a directory's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
