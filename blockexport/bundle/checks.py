"""Everything that can be wrong with a bundle on disk, found without running any of it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockexport.bundle.disk import Tree, file_sha256, open_regular, scan_tree
from blockexport.bundle.layout import MANIFEST_FILE, PROFILES_FOLDER, parent_folders
from blockexport.bundle.manifest import Manifest
from blockexport.bundle.sealed import unseal
from blockexport.bundle.weights import read_locations
from blockexport.errors import BundleError, IntegrityError

# Above any manifest of a real model, below what would fill the memory of a host.
_MAX_JSON_BYTES = 1 << 26
PROFILE_SEAL_FIELD = "profile_sha256"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; `why` says what is wrong, or "" when nothing is."""

    id: str
    ok: bool
    why: str = ""


def require_folder(folder: Path) -> None:
    """Refuse what is no folder.

    Raises:
        BundleError: there is none.
    """
    if not folder.is_dir():
        what = "is not a folder" if os.path.lexists(folder) else "does not exist"
        msg = f"{folder} {what}; give the folder that `blockexport build` wrote"
        raise BundleError(msg)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest alone.

    Raises:
        SchemaVersionError: it is of a format that this version cannot read.
        IntegrityError: it is damaged.
        BundleError: there is none.
    """
    require_folder(folder)
    if not os.path.lexists(folder / MANIFEST_FILE):
        msg = f"{folder} has no {MANIFEST_FILE}, so it is no bundle; give the folder that `blockexport build` wrote"
        raise BundleError(msg)
    return Manifest.from_bytes(_read_json_bytes(folder / MANIFEST_FILE))


def read_profile(path: Path) -> dict[str, Any]:
    """Read what `Bundle.write_profile` wrote, with the digests that surround the profile.

    Raises:
        IntegrityError: the file is damaged or is no profile of a bundle.
    """
    value = unseal(_read_json_bytes(path), PROFILE_SEAL_FIELD, f"profile {path}")
    if set(value) != {"bundle_sha256", "profile"}:
        msg = f"profile {path} is not one that blockexport wrote; delete it and run `blockexport profile`"
        raise IntegrityError(msg)
    return value


def _read_json_bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            raw = file.read(_MAX_JSON_BYTES + 1)
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}; restore it from a copy or rebuild the bundle"
        raise IntegrityError(msg) from error
    if len(raw) > _MAX_JSON_BYTES:
        msg = f"{path} is larger than {_MAX_JSON_BYTES} bytes; restore it from a copy or rebuild the bundle"
        raise IntegrityError(msg)
    return raw


def is_profile(path: str) -> bool:
    """Whether a relative path is where a profile may lie."""
    folder, _, name = path.partition("/")
    return folder == PROFILES_FOLDER and name.endswith(".json") and "/" not in name


def inspect_files(folder: Path, manifest: Manifest, *, verify: bool) -> Iterator[Check]:
    """All checks behind the manifest, the cheap ones first.

    Args:
        folder: the bundle.
        manifest: what it says of itself.
        verify: whether to read every byte.
    """
    try:
        tree = scan_tree(folder)
    except OSError as error:
        yield Check("files", False, f"cannot list {folder}: {error.strerror or error}")
        return
    yield _verdict("links", [f"{path} is a link or a device" for path in sorted(tree.others)])
    yield _verdict("extra", _extra(tree, manifest))
    yield _verdict("files", _missing_or_resized(tree, manifest))
    yield _weights_layout(folder, manifest)
    if verify:
        for entry in manifest.files:
            if entry.path in tree.files:
                yield _content(folder / entry.path, entry.path, entry.sha256)
        for path in sorted(tree.files):
            if is_profile(path) and not path.startswith(f"{PROFILES_FOLDER}/."):
                yield _profile(folder / path, path)


def _verdict(identifier: str, problems: list[str]) -> Check:
    return Check(identifier, not problems, "; ".join(problems))


def _extra(tree: Tree, manifest: Manifest) -> list[str]:
    listed = [entry.path for entry in manifest.files]
    files = {path for path in tree.files if not is_profile(path)} - {MANIFEST_FILE, *listed}
    folders = tree.folders - parent_folders(listed) - {PROFILES_FOLDER}
    return [f"{path} is not listed in the manifest" for path in sorted(files | folders)]


def _missing_or_resized(tree: Tree, manifest: Manifest) -> list[str]:
    problems = []
    for entry in manifest.files:
        size_bytes = tree.files.get(entry.path)
        if size_bytes is None:
            problems.append(f"{entry.path} is missing or no regular file")
        elif size_bytes != entry.size_bytes:
            problems.append(f"{entry.path} has {size_bytes} bytes, not the {entry.size_bytes} of the manifest")
    return problems


def _weights_layout(folder: Path, manifest: Manifest) -> Check:
    try:
        num_tensors = len(read_locations(folder / manifest.weights.path))
    except IntegrityError as error:
        return Check("weights-layout", False, str(error))
    if num_tensors != manifest.weights.num_tensors:
        why = f"{num_tensors} tensors, not the {manifest.weights.num_tensors} of the manifest"
        return Check("weights-layout", False, why)
    return Check("weights-layout", True)


def _content(path: Path, name: str, wanted: str) -> Check:
    try:
        found = file_sha256(path)
    except OSError as error:
        return Check(f"sha256:{name}", False, f"cannot read it: {error.strerror or error}")
    why = "" if found == wanted else f"its SHA-256 is {found}, not the {wanted} of the manifest"
    return Check(f"sha256:{name}", found == wanted, why)


def _profile(path: Path, name: str) -> Check:
    try:
        read_profile(path)
    except IntegrityError as error:
        return Check(f"profile:{name}", False, str(error))
    return Check(f"profile:{name}", True)
