"""Building beside a bundle and taking its place, so that a kill at any moment leaves the old bundle or the new one.

On Linux the two folders change places in one system call. Where the file system lacks that, the old bundle is first
renamed to `.<name>.previous`; a kill between the two renames leaves only that, and `recover`, which every reader and
writer calls first, renames it back.

A staging folder is `.<name>.building-<random>` and locked by its writer. The system drops the lock of a process that
dies, however it dies, so a staging folder that can be locked is rubbish. Process ids would not do: in two containers
they name different processes.
"""

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from blockexport.core.jsonio import sync_directory

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_EXCHANGE_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others who lock a folder waiting; where the file system has no locks, they are not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def exclusive(out: Path) -> AbstractContextManager[None]:
    """Keep other writers of `out` waiting.

    It is the folder around `out` that is locked, and only for the moments in which `out` is looked at and replaced.
    """
    return locked(out.parent)


def create_staging(out: Path) -> tuple[Path, int]:
    """Make an empty locked folder beside `out`; to be called inside `exclusive`.

    Returns:
        The folder, and the descriptor that holds its lock until it is closed.
    """
    staging = out.with_name(f".{out.name}.building-{secrets.token_hex(4)}")
    descriptor = -1
    try:
        staging.mkdir()
        descriptor = os.open(staging, os.O_RDONLY)
        _lock(descriptor)
    except BaseException:
        with suppress(OSError):
            staging.rmdir()
        if descriptor >= 0:
            os.close(descriptor)
        raise
    return staging, descriptor


def remove_abandoned(out: Path) -> None:
    """Delete what dead writers of `out` left beside it; to be called inside `exclusive`."""
    for staging in out.parent.glob(f".{_escaped(out.name)}.building-*"):
        with suppress(OSError):
            descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _lock(descriptor):
                    shutil.rmtree(staging, ignore_errors=True)
            finally:
                os.close(descriptor)
    if out.exists():
        shutil.rmtree(previous_folder(out), ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _lock(descriptor: int) -> bool:
    """Whether nobody else holds the lock, and there are locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def previous_folder(out: Path) -> Path:
    """Where the old bundle waits while the new one takes its place in two steps."""
    return out.with_name(f".{out.name}.previous")


def recover(out: Path) -> None:
    """Call `put_back` if it has anything to do, after the writer that may be at work."""
    if os.path.lexists(out) or not previous_folder(out).is_dir():
        return
    with suppress(OSError), exclusive(out):
        put_back(out)


def put_back(out: Path) -> None:
    """Undo the first half of a replacement in two steps that was killed half-way; to be called inside `exclusive`."""
    if not os.path.lexists(out) and previous_folder(out).is_dir():
        previous_folder(out).rename(out)


def put_in_place(staging: Path, out: Path) -> None:
    """Make `staging` the folder at `out`, which is missing, empty or a bundle; to be called inside `exclusive`.

    Afterwards nothing is at `staging`, or what was at `out` before.

    Raises:
        OSError: the system refuses; `out` is as it was.
    """
    try:
        # rename(2) takes the place of nothing and of an empty folder.
        staging.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not exchange(staging, out):
            _replace_in_two_steps(staging, out)
    sync_directory(out.parent)


def exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one step.

    Returns:
        False where the system cannot do that.

    Raises:
        OSError: it can, but refuses.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _EXCHANGE_UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def _replace_in_two_steps(staging: Path, out: Path) -> None:
    previous = previous_folder(out)
    shutil.rmtree(previous, ignore_errors=True)
    try:
        out.rename(previous)
        staging.rename(out)
    except BaseException:
        put_back(out)
        raise
    # Before the old one goes: a power cut must not keep the deletion and lose the rename.
    sync_directory(out.parent)
    shutil.rmtree(previous, ignore_errors=True)
