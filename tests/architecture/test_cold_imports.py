"""What a command or a serving host does not need, it does not load. Each check needs an interpreter of its own."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "sklearn", "matplotlib", "scipy")
EAGER = ("torch", "transformers")

# Ends the process by a message naming the packages that came along, or silently.
_REPORT = "; import sys; sys.exit(' '.join(sorted({n.partition('.')[0] for n in sys.modules} & set(FORBIDDEN))))"


def loaded_packages(code: str, forbidden: tuple[str, ...]) -> str:
    """Run `code` in a fresh interpreter and name what it loaded of `forbidden`."""
    done = subprocess.run(
        [sys.executable, "-c", code + _REPORT.replace("FORBIDDEN", repr(forbidden))],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip()


def test_the_check_sees_what_it_looks_for() -> None:
    assert loaded_packages("import blockexport; blockexport.load_model", EAGER) == "torch transformers"


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_packages("import blockexport", (*HEAVY, "numpy", "pydantic")) == ""


@pytest.mark.parametrize("name", ["DepthMask", "DepthLadder", "LatencyBudget", "BlockScores", "BlockExportError"])
def test_value_types_load_nothing_heavy(name: str) -> None:
    assert loaded_packages(f"import blockexport; blockexport.{name}", HEAVY) == ""


def test_the_runtime_needs_neither_torch_nor_transformers() -> None:
    assert loaded_packages("import blockexport; blockexport.load", EAGER) == ""


@pytest.mark.parametrize(
    "module",
    [
        "core.quality",
        "processing.processor",
        "bundle.reader",
        "profiling",
        "routing",
        "runtime",
        "server.app",
        "backends.onnxruntime.session",
    ],
)
def test_no_package_of_the_serving_path_needs_torch(module: str) -> None:
    assert loaded_packages(f"import blockexport.{module}", EAGER) == ""


def test_the_tokens_of_a_picture_are_counted_without_pillow() -> None:
    assert loaded_packages("from blockexport.processing import num_image_tokens", (*HEAVY, "PIL", "tokenizers")) == ""


def test_the_serving_path_works_where_torch_is_not_installed() -> None:
    blocked = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; import blockexport as bx; bx.load"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "blockexport", "--help"], capture_output=True, text=True, check=True
    )
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "blockexport.cli.app" in names
    assert not {name.partition(".")[0] for name in names} & set(HEAVY)
