"""The names users rely on are there, under those names, and nothing else is promised by accident."""

import tomllib
from pathlib import Path

import pytest

import blockexport as bx
from blockexport import errors

CONTRACT = {
    "BlockExportError",
    "BlockScores",
    "DepthLadder",
    "DepthLevel",
    "DepthMask",
    "LatencyBudget",
    "Sampling",
    "bake",
    "build",
    "compile_level",
    "load",
    "load_model",
    "masked",
    "profile",
    "score",
    "select",
}

ROOT = Path(__file__).parents[2]


def test_the_export_list_is_the_contract() -> None:
    assert set(bx.__all__) == CONTRACT
    assert bx.__all__ == sorted(bx.__all__)


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_each_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(bx, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(bx)


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = bx.lod


def test_every_error_is_of_the_one_tree_and_drawn_in_it() -> None:
    raised = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert raised
    for error in raised:
        assert issubclass(error, bx.BlockExportError)
        assert error.exit_code in {1, 2, 3}
        assert error.__name__ in (errors.__doc__ or "")


def test_bad_values_are_value_errors_too() -> None:
    for error in (errors.ConfigError, errors.ModelSupportError, errors.RequestError):
        assert issubclass(error, ValueError)


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert bx.__version__ == project["version"]
    assert f"## [{bx.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_package_is_typed() -> None:
    assert (Path(bx.__file__).parent / "py.typed").is_file()
