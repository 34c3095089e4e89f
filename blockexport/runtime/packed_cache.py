"""Weights packed for this host, kept outside the bundle, so that all levels map one copy instead of making their own.

An entry is a folder under `packed/` in the cache, named by a digest of what its contents depend on. It is built in a
hidden folder under a lock of the whole cache, its levels' outputs are compared with those of the bundle's own graphs,
and only then it is renamed into place: an entry that can be seen is whole and was right. What nobody uses may be
removed, the least recently used first.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from blockexport.backends.onnxruntime.operators import STOCK
from blockexport.backends.onnxruntime.packing import pack_graphs
from blockexport.backends.onnxruntime.probe import gives_same_outputs
from blockexport.bundle.disk import flush_tree, scan_tree, write_errors
from blockexport.bundle.reader import Bundle
from blockexport.bundle.swap import locked
from blockexport.core.host_cache import default_cache_folder
from blockexport.core.host_memory import available_memory_bytes
from blockexport.core.jsonio import dump_json, sync_directory
from blockexport.errors import BundleError
from blockexport.runtime.packed_entry import (
    BACKEND,
    PackedEntry,
    PackedLevels,
    allocated_bytes,
    identity_of,
    list_entry,
    lock_folder,
    open_entry,
    seal_entry,
)

DEFAULT_MAX_BYTES = 32 * 10**9
_FOLDER = "packed"
# In units of the bundle's weights. Memory: 1.6 (fp32) and 1.7 (int4) were seen, for the packed form and what is mapped.
# Disk: the runtime's copy of the weights and their packed forms, which are up to a quarter larger, and ours.
_MEMORY_FACTOR = 2.0
_DISK_FACTOR = 4.6


class PackedCache:
    """The packed weights kept on this host.

    Args:
        folder: the cache, of which packed weights are a part; None for `default_cache_folder`.
        max_bytes: what all entries together may take.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = (folder or default_cache_folder()) / _FOLDER
        self.max_bytes = max_bytes

    def find(self, bundle: Bundle, *, verify: bool = True) -> PackedLevels | None:
        """The packed levels of a bundle, if some are there that are whole and of this host.

        Args:
            bundle: the bundle.
            verify: whether the digests of an entry's files are compared, or their sizes only.
        """
        identity = identity_of(bundle)
        return open_entry(self._place(identity), identity, bundle, verify=verify)

    def open(self, bundle: Bundle, *, threads: int = 0, verify: bool = True) -> PackedLevels:
        """The packed levels of a bundle, made if `find` finds none.

        Making them takes several times as long as opening the deepest level without; another process that makes some
        is waited for.

        Args:
            bundle: the bundle.
            threads: threads within an operator.
            verify: see `find`.

        Raises:
            BundleError: they cannot be made: no room on disk or in memory, or the runtime does not pack this bundle.
                Nothing is left behind, and the bundle's own graphs can be used.
        """
        found = self.find(bundle, verify=verify)
        if found is not None:
            return found
        with write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder):
                found = self.find(bundle, verify=verify)
                if found is None:
                    identity = identity_of(bundle)
                    self._make(self._place(identity), identity, bundle, threads)
                    # Its digests were taken from these very bytes a moment ago.
                    found = self.find(bundle, verify=False)
        if found is None:
            msg = f"the packed weights in {self.folder} were removed while they were made; run again"
            raise BundleError(msg)
        return found

    def entries(self) -> list[PackedEntry]:
        """All entries, the least recently used first."""
        folders = [path for path in self.folder.glob("[!.]*") if path.is_dir()]
        listed = [entry for entry in map(list_entry, folders) if entry is not None]
        return sorted(listed, key=lambda entry: (entry.last_used_s, entry.key))

    def clear(self) -> list[PackedEntry]:
        """Remove all entries but those in use, and what killed processes left.

        Returns:
            What was removed.
        """
        if not self.folder.is_dir():
            return []
        with write_errors(self.folder), locked(self.folder):
            self._remove_rubbish()
            return [entry for entry in self.entries() if self._remove(entry)]

    def _place(self, identity: dict[str, Any]) -> Path:
        return self.folder / hashlib.sha256(dump_json(identity).encode()).hexdigest()[:32]

    def _make(self, place: Path, identity: dict[str, Any], bundle: Bundle, threads: int) -> None:
        self._remove_rubbish()
        self._discard(place)
        weights_bytes = bundle.weights_path.stat().st_size
        _require_memory(weights_bytes)
        self._make_room(int(weights_bytes * _DISK_FACTOR), 0)
        staging = self.folder / f".building-{secrets.token_hex(4)}"
        try:
            staging.mkdir()
            levels = [level.name for level in bundle.manifest.levels]
            graphs = {name: bundle.engine_path(name, BACKEND, STOCK.target) for name in levels}
            pack_graphs(graphs, staging, threads=threads)
            _prove(graphs, staging, threads)
            seal_entry(staging, identity, bundle)
            flush_tree(staging, scan_tree(staging))
            self._make_room(0, allocated_bytes(staging))
            staging.rename(place)
            sync_directory(self.folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _make_room(self, free_bytes: int, entry_bytes: int) -> None:
        """Remove what was not used for longest until so much is free on the disk and an entry fits the bound."""
        # What can never fit must not drive out what does.
        for entry in [*self.entries(), None] if entry_bytes <= self.max_bytes else [None]:
            lacking = free_bytes - shutil.disk_usage(self.folder).free
            excess = sum(kept.size_bytes for kept in self.entries()) + entry_bytes - self.max_bytes
            if lacking <= 0 and excess <= 0:
                return
            if entry is None:
                what = f"{lacking} bytes are missing on the disk" if lacking > 0 else f"it is {excess} bytes too large"
                msg = f"no room for packed weights in {self.folder}: {what}; make room or allow the cache more"
                raise BundleError(msg)
            self._remove(entry)

    def _remove(self, entry: PackedEntry) -> bool:
        """Whether an entry could be removed, being used by nobody; to be called while the cache is locked."""
        place = self.folder / entry.key
        lock = lock_folder(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            return False
        try:
            self._discard(place)
        finally:
            os.close(lock)
        return True

    def _discard(self, place: Path) -> None:
        """Take a folder out of sight in one step, then delete it; who has mapped its files keeps them."""
        aside = self.folder / f".removed-{secrets.token_hex(4)}"
        with suppress(FileNotFoundError):
            place.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _remove_rubbish(self) -> None:
        """Delete hidden folders: all who write some hold the lock that the caller has, so their writers are dead."""
        for path in self.folder.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)


def _require_memory(weights_bytes: int) -> None:
    needed, available = int(weights_bytes * _MEMORY_FACTOR), available_memory_bytes()
    if available is not None and available < needed:
        msg = (
            f"packing {weights_bytes / 1e6:.0f} MB of weights takes {needed / 1e6:.0f} MB of memory and "
            f"{available / 1e6:.0f} MB are free; free some, or use the bundle without packed weights"
        )
        raise BundleError(msg)


def _prove(graphs: dict[str, Path], staging: Path, threads: int) -> None:
    for level, graph in graphs.items():
        if not gives_same_outputs(graph, staging / graph.name, threads=threads):
            msg = f"level {level} answers differently with packed weights; they are thrown away, use the bundle's own"
            raise BundleError(msg)
