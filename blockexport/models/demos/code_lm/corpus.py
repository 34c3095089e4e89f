"""The text half of the `demo:code-lm` data: the running interpreter's own standard library.

Every Python installation carries it, so nothing is downloaded. A module is held out for validation by the
hash of its name, never by its position, so a module held out under one Python version is held out under all.
"""

import hashlib
import sysconfig
from pathlib import Path

HELD_OUT_PER_MILLE = 40
# Test suites, bundled wheels and generated tables would teach the model repetition, not Python.
_EXCLUDED_DIRS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "_bundled", "pydoc_data", "__pycache__"}
)
_MIN_SPLIT_BYTES = 100_000


def _is_held_out(module_path: str) -> bool:
    digest = hashlib.sha256(module_path.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000 < HELD_OUT_PER_MILLE


def read_split(held_out: bool) -> list[str]:
    """Read the sources of one split, ordered by module path.

    Args:
        held_out: True for the validation modules, False for the training modules.

    Returns:
        One string per source file.

    Raises:
        FileNotFoundError: this interpreter ships no (or hardly any) standard-library sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _EXCLUDED_DIRS.isdisjoint(relative.parts) and _is_held_out(relative.as_posix()) == held_out:
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
    total_bytes = sum(len(text.encode()) for text in texts)
    if total_bytes < _MIN_SPLIT_BYTES:
        msg = (
            f"found {total_bytes} bytes of standard-library sources in {root}, need at least {_MIN_SPLIT_BYTES}; "
            "install the full Python standard library or pass your own data"
        )
        raise FileNotFoundError(msg)
    return texts
