import json

import pytest
from typer.testing import CliRunner

import blockexport
from blockexport.cli.app import VERBS, app, main


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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["frobnicate"], "frobnicate"),
        (["score"], "MODEL"),
        (["score", "m", "--no-such-option"], "--no-such-option"),
        (["score", "m", "--batch-size", "many"], "--batch-size"),
        (["plan", "b", "--budget-ms", "soon"], "--budget-ms"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_one_document(
    arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["blockexport", *arguments, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == 2
        assert printed.err.startswith("blockexport: ")
        assert printed.err.count("\n") == 1
        assert named in printed.err
        assert "--help" in printed.err
        if more:
            assert json.loads(printed.out)["error"]["exit_code"] == 2
        else:
            assert printed.out == ""


def test_a_call_without_a_verb_shows_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["blockexport"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr()
    assert "Usage: blockexport" in printed.out + printed.err
