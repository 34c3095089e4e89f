import json
import logging
import warnings
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from blockexport.cli.verb import JsonFlag, Result, set_debugging, verb
from blockexport.errors import BundleError, ConfigError, ExportError, ParityError, ProfileError


def run(body: Any, *arguments: str) -> Any:
    """A one-verb application whose verb is `body`."""
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @verb
    def only(as_json: JsonFlag = False) -> Result:
        value = body()
        return value if isinstance(value, Result) else Result(value, lambda output: output.line(f"got {value}"))

    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError, 2), (BundleError, 2), (ProfileError, 2), (ParityError, 3), (ExportError, 1)]
)
def test_an_error_is_one_line_and_its_own_exit_code(error: type[Exception], code: int) -> None:
    def body() -> None:
        msg = "what was given\nand what to do"
        raise error(msg)

    result = run(body)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "blockexport: what was given and what to do\n"


def test_what_nobody_foresaw_exits_1_without_a_traceback() -> None:
    def body() -> None:
        {}["oops"]

    result = run(body)
    assert result.exit_code == 1
    assert result.stderr.startswith("blockexport: unexpected KeyError")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("package", "extra"), [("torch.nn", "build"), ("onnxruntime", "ort"), ("matplotlib", "plot")])
def test_a_missing_package_names_the_extra_that_brings_it(package: str, extra: str) -> None:
    def body() -> None:
        msg = "no module"
        raise ModuleNotFoundError(msg, name=package)

    result = run(body)
    assert result.exit_code == 2
    assert f"blockexport[{extra}]" in result.stderr


def test_a_place_that_cannot_be_used_is_named() -> None:
    def body() -> None:
        raise PermissionError(13, "Permission denied", "/some/place")

    result = run(body)
    assert result.exit_code == 1
    assert result.stderr.startswith("blockexport: /some/place: Permission denied")


def test_debugging_shows_the_traceback() -> None:
    def body() -> None:
        {}["oops"]

    set_debugging(wanted=True)
    try:
        assert "Traceback" in run(body).stderr
    finally:
        set_debugging(wanted=False)


def test_interrupting_ends_with_130() -> None:
    def body() -> None:
        raise KeyboardInterrupt

    assert run(body).exit_code == 130


def test_nothing_but_the_result_reaches_stdout() -> None:
    def body() -> dict[str, float]:
        print("a library speaks")  # noqa: T201
        return {"a": float("inf")}

    result = run(body, "--json")
    assert json.loads(result.stdout) == {"a": float("inf")}
    assert "Infinity" not in result.stdout
    assert run(body).stdout == "got {'a': inf}\n"


def test_an_error_in_json_is_one_document_too() -> None:
    def body() -> None:
        msg = "no"
        raise ParityError(msg)

    result = run(body, "--json")
    assert json.loads(result.stdout) == {"error": {"type": "ParityError", "message": "no", "exit_code": 3}}
    assert result.stderr == "blockexport: no\n"


def test_a_result_that_cannot_be_json_is_an_error() -> None:
    result = run(lambda: {"a": float("nan")}, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["type"] == "ConfigError"


def test_a_result_may_carry_an_exit_code() -> None:
    result = run(lambda: Result({"ok": False}, lambda output: output.line("not ok"), 3), "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (3, {"ok": False})


def test_warnings_and_logs_of_libraries_are_silent_only_while_a_verb_runs(capfd: pytest.CaptureFixture[str]) -> None:
    def body() -> dict[str, int]:
        warnings.warn("old", FutureWarning, stacklevel=1)
        logging.getLogger("transformers").warning("noise")
        return {}

    before = logging.root.manager.disable
    assert run(body).stderr == ""
    assert logging.root.manager.disable == before
    with pytest.warns(FutureWarning):
        warnings.warn("again", FutureWarning, stacklevel=1)
