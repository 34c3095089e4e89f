"""What lies under a folder, read without ever following a link, and flushed so that it survives a power cut."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedReader, BufferedWriter
from pathlib import Path

from blockexport.core.jsonio import sync_directory
from blockexport.errors import BundleError


@dataclass(frozen=True, slots=True)
class Tree:
    """Everything under a folder, by relative POSIX path.

    Attributes:
        files: regular files and their sizes in bytes.
        folders: directories.
        others: symbolic links, pipes, sockets and devices.
    """

    files: dict[str, int] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)


def scan_tree(folder: Path) -> Tree:
    """List a folder to its leaves.

    Raises:
        OSError: some part of it cannot be read.
    """
    tree = Tree()
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                path = prefix + entry.name
                mode = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(mode.st_mode):
                    tree.folders.add(path)
                    pending.append(path + "/")
                elif stat.S_ISREG(mode.st_mode):
                    tree.files[path] = mode.st_size
                else:
                    tree.others.add(path)
    return tree


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading, but no link, and nothing whose opening blocks.

    Raises:
        OSError: it cannot be opened or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            msg = "not a regular file"
            raise OSError(msg)
        yield file


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal.

    Raises:
        OSError: it cannot be read or is not a regular file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_tree(folder: Path, tree: Tree) -> None:
    """Force all files, then all directories from the leaves up, to disk."""
    for path in sorted(tree.files):
        with open_regular(folder / path) as file:
            os.fsync(file.fileno())
    for path in sorted(tree.folders, reverse=True):
        sync_directory(folder / path)
    sync_directory(folder)


@contextmanager
def written_aside(path: Path, aside: Path) -> Iterator[BufferedWriter]:
    """A file to write, which takes the place of `path` in one step when the block ends without an error.

    Args:
        path: where it goes.
        aside: where it is written, in the same folder; must not exist.

    Raises:
        OSError: the system refuses.
    """
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
    sync_directory(path.parent)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn what the system says against writing `path` into a `BundleError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        msg = f"cannot write {path}: {reason}; make room or give a place that can be written, then run again"
        raise BundleError(msg) from error
