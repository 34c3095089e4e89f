"""One bundle's packed weights on disk: what they depend on, whether they are whole, and who uses them.

A list of an entry's files lies among them, with their digests and one of its own. Whoever uses an entry holds a shared
lock on its folder, which the system drops when the process dies, however it dies.
"""

import fcntl
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blockexport.bundle.disk import file_sha256, scan_tree
from blockexport.bundle.reader import Bundle
from blockexport.bundle.sealed import seal, unseal
from blockexport.core.hardware import HostFingerprint
from blockexport.errors import IntegrityError

BACKEND = "onnxruntime"
_LIST_FILE = "entry.json"
_SEAL_FIELD = "sha256"
# Of what is written here and of how sessions are opened; to be raised when either changes.
_LAYOUT = 1


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """An entry as it is listed.

    Attributes:
        key: name of its folder.
        bundle_sha256: digest of the bundle's manifest.
        size_bytes: what it takes on disk, without what it shares with the bundle.
        last_used_s: seconds since 1970.
        in_use: whether some process has it open.
    """

    key: str
    bundle_sha256: str
    size_bytes: int
    last_used_s: int
    in_use: bool

    def to_json(self) -> dict[str, Any]:
        """As the command line prints it."""
        return asdict(self)


class PackedLevels:
    """An opened entry; it is not removed before it is closed or the process ends."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock

    def path(self, graph: Path) -> Path:
        """What to open instead of a graph of the bundle."""
        return self.folder / graph.name

    def close(self) -> None:
        """Let the entry go; sessions that were opened from it stay good."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def __del__(self) -> None:
        self.close()


def identity_of(bundle: Bundle) -> dict[str, Any]:
    """All that the contents of an entry depend on."""
    host = HostFingerprint.detect()
    return {
        "bundle_sha256": bundle.manifest.digest,
        "layout": _LAYOUT,
        "cpu": host.cpu,
        "cpu_features": list(host.cpu_features),
        "system": host.system,
        "runtime": {name: version for name, version in host.packages.items() if name.startswith(BACKEND)},
    }


def open_entry(place: Path, identity: dict[str, Any], bundle: Bundle, *, verify: bool) -> PackedLevels | None:
    """The entry at a place, or None when there is none that can be used."""
    lock = lock_folder(place, fcntl.LOCK_SH)
    if lock is None:
        return None
    levels = PackedLevels(place, lock)
    try:
        _check(place, identity, bundle, verify=verify)
    except (IntegrityError, OSError):
        levels.close()
        return None
    # A cache that others have filled may be read-only.
    with suppress(OSError):
        os.utime(place / _LIST_FILE)
    return levels


def lock_folder(place: Path, operation: int) -> int | None:
    """An open descriptor of a folder with the lock on it; None when somebody has it, or no folder is there any more."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        # No locks on this file system: an entry may then go while it is used, which shows when a level is opened.
        pass
    # It may have been removed while the lock was waited for.
    with suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), place.stat()):
            return descriptor
    os.close(descriptor)
    return None


def _check(place: Path, identity: dict[str, Any], bundle: Bundle, *, verify: bool) -> None:
    listed = unseal((place / _LIST_FILE).read_bytes(), _SEAL_FIELD, f"{place / _LIST_FILE}")
    files = listed.pop("files", None)
    if listed != identity or not isinstance(files, dict):
        msg = f"{place} holds packed weights of another bundle, host or runtime; they are made again"
        raise IntegrityError(msg)
    present = scan_tree(place).files
    present.pop(_LIST_FILE)
    sizes = {name: entry["size_bytes"] for name, entry in files.items()}
    if present != sizes:
        msg = f"{place} holds files of other sizes than were written; they are made again"
        raise IntegrityError(msg)
    for name, entry in files.items():
        if verify and not _is_the_bundles(place / name, bundle) and file_sha256(place / name) != entry["sha256"]:
            msg = f"{place / name} was damaged; the packed weights are made again"
            raise IntegrityError(msg)


def seal_entry(folder: Path, identity: dict[str, Any], bundle: Bundle) -> None:
    """Write the list of files into a folder that is otherwise complete."""
    (folder / _LIST_FILE).write_bytes(seal(identity | {"files": _files(folder, bundle)}, _SEAL_FIELD))


def _is_the_bundles(path: Path, bundle: Bundle) -> bool:
    """Whether it is the same file as the bundle's weights, which opening the bundle has checked."""
    with suppress(OSError):
        return path.samefile(bundle.weights_path)
    return False


def _files(folder: Path, bundle: Bundle) -> dict[str, dict[str, Any]]:
    known = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    return {
        name: {
            "size_bytes": size,
            "sha256": known[name] if _is_the_bundles(folder / name, bundle) else file_sha256(folder / name),
        }
        for name, size in sorted(scan_tree(folder).files.items())
    }


def list_entry(place: Path) -> PackedEntry | None:
    """An entry, whole or not; None when it is gone."""
    bundle_sha256 = "damaged"
    with suppress(IntegrityError, OSError, KeyError):
        bundle_sha256 = unseal((place / _LIST_FILE).read_bytes(), _SEAL_FIELD, str(place))["bundle_sha256"]
    try:
        marker = place / _LIST_FILE if (place / _LIST_FILE).exists() else place
        lock = lock_folder(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is not None:
            os.close(lock)
        return PackedEntry(place.name, bundle_sha256, allocated_bytes(place), int(marker.stat().st_mtime), lock is None)
    except OSError:
        return None


def allocated_bytes(folder: Path) -> int:
    """What a folder takes on disk; files with holes take less than their size, and those with a second name nothing."""
    states = [(folder / name).stat() for name in scan_tree(folder).files]
    return sum(state.st_blocks * 512 for state in states if state.st_nlink == 1)
