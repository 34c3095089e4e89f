"""import-linter checks the layers; this checks that import-linter sees all of the package."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Not of any layer: helpers for tests, the lazy front door and `python -m`.
OUTSIDE = {"testing", "__init__", "__main__"}


def layers() -> set[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = (entry for entry in settings["contracts"] if entry.get("containers") == ["blockexport"])
    return {name.strip().strip("()") for line in contract["layers"] for name in line.split("|")}


def test_every_package_has_a_layer() -> None:
    found = {path.stem for path in (ROOT / "blockexport").glob("*.py")}
    found |= {path.parent.name for path in (ROOT / "blockexport").glob("*/__init__.py")}
    assert found - OUTSIDE <= layers()


def test_kernels_is_not_importable_as_a_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
