import pytest
from typer.testing import CliRunner

import blockexport
from blockexport.cli.app import VERBS, app


def test_verbs_are_named_after_their_files() -> None:
    for verb in VERBS:
        assert verb.__module__ == f"blockexport.cli.{verb.__name__}"


@pytest.mark.parametrize("verb", [verb.__name__ for verb in VERBS])
def test_an_unknown_option_exits_2_and_names_it(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--no-such-option"])
    assert result.exit_code == 2
    assert "--no-such-option" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_verb_exits_2() -> None:
    result = CliRunner().invoke(app, ["frobnicate"])
    assert result.exit_code == 2
    assert "frobnicate" in result.stderr


def test_the_version_is_the_packages() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"{blockexport.__version__}\n")
