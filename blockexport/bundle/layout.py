"""Names inside a bundle, and which relative paths a bundle may list."""

import unicodedata
from pathlib import PurePosixPath

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
PARITY_FILE = "parity.safetensors"
"""The eager reference's recorded answers, so that a bundle can be verified without torch or the checkpoint."""
SCORES_FILE = "scores.json"
"""The block scores that the ladder rests on, in bundles that were built from scores."""
VISION_SCORES_FILE = "vision_scores.json"
"""The same of the vision side's blocks."""
VISION_PREFIX = "vision:"
"""In front of the name of a vision level where it stands among names of levels."""
TOKENIZER_FOLDER = "tokenizer"
PROFILES_FOLDER = "profiles"
# What Linux and macOS take for one part of a path.
_MAX_NAME_BYTES = 255


def engine_file(level: str, target: str) -> str:
    """File name of one level's graph for one lowering target.

    Flat, beside the weights: ONNX Runtime and onnx refuse external data behind `..`, an absolute path or a link.

    Args:
        level: its name, behind `VISION_PREFIX` for a vision level.
        target: what it was lowered to.
    """
    # "+" is in no level name, so that no level can take a vision level's file.
    return f"{level.replace(VISION_PREFIX, 'vision+')}.{target}.onnx"


def package_file(backend: str, level: str, target: str, suffix: str) -> str:
    """Path of a level's machine code: in a folder of its backend, since it refers to no other file."""
    return f"{backend}/{level}.{target}{suffix}"


def check_path(path: str) -> str:
    """Return `path` if a bundle may list a file under it.

    Raises:
        ValueError: the path is not a relative, normalised POSIX path that stays inside the bundle, or names the
            manifest or a profile, which a manifest cannot list.
    """
    parts = path.split("/")
    if (
        any(part in ("", ".", "..") for part in parts)
        or any(character in '\\:"<>|?*' or not character.isprintable() for character in path)
        or any(len(part.encode()) > _MAX_NAME_BYTES for part in parts)
    ):
        msg = f"path {path!r} is not allowed in a bundle; list relative POSIX paths like 'tokenizer/tokenizer.json'"
        raise ValueError(msg)
    if folded(path) == MANIFEST_FILE or folded(parts[0]) == PROFILES_FOLDER:
        msg = f"path {path!r} is the manifest or a profile, which no manifest lists; leave it out"
        raise ValueError(msg)
    return path


def folded(path: str) -> str:
    """The path as a file system without case or normalisation sees it: two files must differ in this."""
    return unicodedata.normalize("NFC", path).casefold()


def parent_folders(paths: list[str]) -> set[str]:
    """Every folder that holding these files takes, without the bundle's own."""
    return {str(parent) for path in paths for parent in PurePosixPath(path).parents} - {"."}
