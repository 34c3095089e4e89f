"""Opening a bundle: nothing in it is handed to a backend before it was checked."""

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockexport.bundle.checks import (
    PROFILE_SEAL_FIELD,
    Check,
    inspect_files,
    read_manifest,
    read_profile,
    require_folder,
)
from blockexport.bundle.disk import file_sha256, write_errors, written_aside
from blockexport.bundle.layout import PROFILES_FOLDER, TOKENIZER_FOLDER
from blockexport.bundle.manifest import LevelEntry, Manifest
from blockexport.bundle.sealed import seal
from blockexport.bundle.swap import previous_folder, recover
from blockexport.core.masks import DepthLadder
from blockexport.errors import BundleError, ConfigError, IntegrityError, SchemaVersionError

# A bundle that is replaced while it is read gives a mixture; each replacement costs one more look.
_MAX_LOOKS = 10


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk that was checked when it was opened.

    Attributes:
        folder: absolute path, without links.
        manifest: what it says of itself.
    """

    folder: Path
    manifest: Manifest

    @property
    def ladder(self) -> DepthLadder:
        """The levels' masks, deepest first."""
        return self.manifest.ladder

    def level(self, name: str) -> LevelEntry:
        """The level of that name.

        Raises:
            ConfigError: there is none.
        """
        return self.manifest.level(name)

    def engine_path(self, level: str, backend: str, target: str | None = None) -> Path:
        """The engine file of a level; the backend's first one when no target is named.

        Raises:
            ConfigError: there is no such level.
            BundleError: the level has no such engine.
        """
        engines = self.level(level).engines
        for engine in engines:
            if engine.backend == backend and target in (None, engine.target):
                return self.folder / engine.path
        wanted = backend if target is None else f"{backend}/{target}"
        present = ", ".join(f"{engine.backend}/{engine.target}" for engine in engines) or "none"
        msg = f"level {level} has no engine for {wanted}; it has {present}; build the bundle with that backend"
        raise BundleError(msg)

    def check_file(self, path: Path) -> None:
        """Compare the digest of one file with the manifest's: machine code is never opened without.

        Raises:
            IntegrityError: they differ, or the manifest lists no such file.
        """
        name = path.relative_to(self.folder).as_posix()
        listed = {entry.path: entry.sha256 for entry in self.manifest.files}
        try:
            found = file_sha256(path)
        except OSError as error:
            found = error.strerror or str(error)
        if found != listed.get(name):
            wanted = listed.get(name)
            msg = f"{name} is not what was built (SHA-256 {found}, not {wanted}); nothing in it is run, rebuild it"
            raise IntegrityError(msg)

    @property
    def weights_path(self) -> Path:
        """The only copy of the weights."""
        return self.folder / self.manifest.weights.path

    @property
    def tokenizer_folder(self) -> Path | None:
        """The tokenizer's files, or None for a bundle without."""
        has_one = any(entry.path.startswith(f"{TOKENIZER_FOLDER}/") for entry in self.manifest.files)
        return self.folder / TOKENIZER_FOLDER if has_one else None

    def profile_path(self, host_key: str) -> Path:
        """Where the latency profile of a host lies, whether or not there is one yet.

        Raises:
            ConfigError: the key cannot be a file name.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", host_key):
            msg = f"host key {host_key!r} is not a file name; use up to 100 letters, digits, '-' and '_'"
            raise ConfigError(msg)
        return self.folder / PROFILES_FOLDER / f"{host_key}.json"

    def read_profiles(self) -> dict[str, Any]:
        """Every host's profile of this very build, by host key.

        A profile that was measured on another build says nothing about this one and is left out.

        Raises:
            IntegrityError: a profile is damaged.
        """
        folder = self.folder / PROFILES_FOLDER
        if folder.is_symlink() or not folder.is_dir():
            return {}
        digest = self.manifest.digest
        found = {path.stem: read_profile(path) for path in sorted(folder.glob("[!.]*.json"))}
        return {key: value["profile"] for key, value in found.items() if value["bundle_sha256"] == digest}

    def write_profile(self, host_key: str, profile: dict[str, Any]) -> Path:
        """Write a host's profile in one step, in place of an earlier one.

        Raises:
            ConfigError: the key cannot be a file name, or the profile is not JSON.
            BundleError: the disk refuses.
        """
        path = self.profile_path(host_key)
        raw = seal({"bundle_sha256": self.manifest.digest, "profile": profile}, PROFILE_SEAL_FIELD)
        # Ends in .json and starts with a dot: what a kill leaves behind neither spoils the bundle nor is read.
        aside = path.with_name(f".{host_key}.{secrets.token_hex(4)}.json")
        with write_errors(path):
            path.parent.mkdir(exist_ok=True)
            if path.parent.is_symlink():
                msg = f"{path.parent} is a link; a bundle holds none, restore it or rebuild the bundle"
                raise IntegrityError(msg)
            with written_aside(path, aside) as file:
                file.write(raw)
        return path


def open_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Open a bundle and check it.

    Args:
        path: its folder; a link to the folder is followed.
        verify: whether to compare every file's SHA-256. Without, only the manifest, the layout and the sizes are
            checked, which takes milliseconds but takes damaged weights for good.

    Raises:
        SchemaVersionError: it is of a format that this version cannot read.
        IntegrityError: its files are not what its manifest says; the message names the first problem.
        BundleError: there is no bundle.
    """
    folder = Path(os.path.realpath(path))
    for _ in range(_MAX_LOOKS):
        recover(folder)
        with _same_folder(folder) as is_still_there:
            try:
                bundle = _open(folder, verify=verify)
            except BundleError:
                if is_still_there():
                    raise
            else:
                if is_still_there():
                    return bundle
    msg = f"{folder} was replaced {_MAX_LOOKS} times while it was read; stop the builds that write it"
    raise BundleError(msg)


@contextmanager
def _same_folder(folder: Path) -> Iterator[Callable[[], bool]]:
    """Give a question: is at this path what was there in the beginning, be it nothing?

    The folder is kept open, since the system would otherwise give the number of a deleted folder to a new one.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        # In the middle of a replacement the old folder is at the one path or the new one at the other.
        yield lambda: not previous_folder(folder).exists() and not folder.exists()
        return
    except OSError:
        yield lambda: True
        return

    def is_same() -> bool:
        with suppress(OSError):
            return os.path.samestat(os.fstat(descriptor), folder.stat())
        return False

    try:
        yield is_same
    finally:
        os.close(descriptor)


def _open(folder: Path, *, verify: bool) -> Bundle:
    manifest = read_manifest(folder)
    for check in inspect_files(folder, manifest, verify=verify):
        if not check.ok:
            msg = f"{folder} is damaged, check {check.id}: {check.why}; restore it from a copy or rebuild it"
            raise IntegrityError(msg)
    return Bundle(folder, manifest)


def check_bundle(path: Path) -> list[Check]:
    """Look at everything in a bundle and list all that is wrong with it.

    The checks are `manifest`, `schema`, `links`, `extra`, `files`, `weights-layout`, `sha256:<path>` for each file
    and `profile:<path>` for each profile. Behind a manifest that cannot be read nothing else is looked at.

    Raises:
        BundleError: there is no folder to look at.
    """
    folder = Path(os.path.realpath(path))
    recover(folder)
    require_folder(folder)
    try:
        manifest = read_manifest(folder)
    except SchemaVersionError as error:
        return [Check("schema", False, str(error))]
    except BundleError as error:
        return [Check("manifest", False, str(error))]
    return [Check("manifest", True), Check("schema", True), *inspect_files(folder, manifest, verify=True)]
