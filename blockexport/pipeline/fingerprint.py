"""What a bundle is made from, by content: equal fingerprints mean that building again would change nothing.

Nothing here loads torch, so that an unchanged recipe is recognised in a moment.
"""

import hashlib
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import blockexport
from blockexport.core.hardware import installed_versions
from blockexport.core.jsonio import dump_json
from blockexport.errors import DataError, ModelSupportError
from blockexport.models.demos import demo_path

_TOOLS = (
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "safetensors",
    "scikit-learn",
    "tokenizers",
)
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.py")
# What only presents results does not change them.
_PRESENTATION = frozenset({"cli", "report", "serving", "testing"})


def digest_value(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(dump_json(value, indent=None).encode()).hexdigest()


def tool_versions() -> dict[str, str]:
    """Everything but our own code that decides what a build gives; one demo's data is the standard library."""
    return {"python": platform.python_version(), **installed_versions(_TOOLS)}


def code_digest() -> str:
    """SHA-256 of the code that scores, selects and builds; a version number would keep stale results in development."""
    root = Path(blockexport.__file__).parent
    files = (path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in _PRESENTATION)
    return _digest_files(root, files)


def model_digest(source: str | Path) -> str:
    """SHA-256 of a model folder's files, or of a demo's.

    Raises:
        ModelSupportError: there is no such folder or demo.
    """
    name = str(source)
    folder = demo_path(name) if name.startswith("demo:") else Path(source)
    if not folder.is_dir():
        msg = f"no model folder at {folder}; give a Hugging Face model folder or a shipped demo such as demo:code-lm"
        raise ModelSupportError(msg)
    return _digest_files(folder, (path for pattern in _MODEL_FILES for path in folder.glob(pattern)))


def data_digest(source: str | Path | None) -> str:
    """SHA-256 of a data file or of every file of a folder; a demo's data are known by name, code and tool versions.

    Raises:
        DataError: there is no such file or folder.
    """
    name = "" if source is None else str(source)
    if not name or name.startswith("demo:"):
        return name
    path = Path(name)
    if path.is_dir():
        return _digest_files(path, (item for item in path.rglob("*") if item.is_file()))
    if not path.is_file():
        msg = f"no data at {path}; give an existing file, or the name of a demo"
        raise DataError(msg)
    return _digest_files(path.parent, (path,))


def _digest_files(root: Path, files: Iterable[Path]) -> str:
    state = hashlib.sha256()
    for path in sorted(set(files)):
        with path.open("rb") as file:
            state.update(f"{path.relative_to(root).as_posix()}:".encode())
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()
