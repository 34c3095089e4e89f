"""What all verbs share: exit codes, one-line errors, and nothing on stdout but the result."""

import functools
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec

import typer

from blockexport.cli.output import Output
from blockexport.errors import BackendUnavailableError, BlockExportError

UNEXPECTED = 1
GATE_FAILED = 3
_INTERRUPTED = 130
# Packages that a host may lack, by import name, and the extra that brings them.
_EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "sklearn"), "build"),
    "onnxruntime": "ort",
    "matplotlib": "plot",
    "PIL": "pictures",
    **dict.fromkeys(("fastapi", "jinja2", "prometheus_client", "uvicorn"), "serve"),
}

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")]
TrustFlag = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python files that the checkpoint brings; read them first.")
]

_Parameters = ParamSpec("_Parameters")
# Whatever stdout is for the libraries meanwhile, results go where it pointed before.
_output: ContextVar[Output] = ContextVar("_output")
_debugging: ContextVar[bool] = ContextVar("_debugging", default=False)


@dataclass(frozen=True, slots=True)
class Result:
    """What a verb found.

    Attributes:
        value: the JSON document.
        show: prints the same for people.
        exit_code: 0, or 3 when a gate failed and the result says which.
    """

    value: Any
    show: Callable[[Output], None]
    exit_code: int = 0


def verb(function: Callable[_Parameters, Result]) -> Callable[_Parameters, None]:
    """Make a function a verb: it takes `as_json`, and returns a result or raises an error of `errors.py`."""

    @functools.wraps(function)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
        output = Output(as_json=bool(kwargs.get("as_json")), stream=sys.stdout)
        token = _output.set(output)
        try:
            with _only_results():
                result = function(*args, **kwargs)
            output.print(result.value, result.show)
        except BlockExportError as error:
            _fail(output, error, error.exit_code, str(error))
        except KeyboardInterrupt as error:
            raise typer.Exit(_INTERRUPTED) from error
        except BrokenPipeError as error:
            # Who reads the results has gone; flushing to them when Python shuts down would only fail again.
            sys.stdout = io.StringIO()
            raise typer.Exit(UNEXPECTED) from error
        except Exception as error:  # noqa: BLE001  (the last line of defence: a person gets a line, not a traceback)
            _fail(output, error, *_explain(error))
        finally:
            _output.reset(token)
        if result.exit_code:
            raise typer.Exit(result.exit_code)

    return run


def current_output() -> Output:
    """Where the running verb's results go, for a verb that prints while it works."""
    return _output.get()


def set_debugging(*, wanted: bool) -> None:
    """Whether errors show tracebacks, and libraries may speak on stderr."""
    _debugging.set(wanted)


def quiet_libraries() -> None:
    """Turn off the progress bars of libraries; to be called before transformers is first imported."""
    if not _debugging.get():
        os.environ["TQDM_DISABLE"] = "1"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"


@contextmanager
def _only_results() -> Iterator[None]:
    if _debugging.get():
        with redirect_stdout(sys.stderr):
            yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and message for what is no error of ours."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in _EXTRAS:
            message = f"package {package} is missing on this host; install blockexport[{_EXTRAS[package]}]"
            return BackendUnavailableError.exit_code, message
    if isinstance(error, OSError) and error.filename is not None:
        return UNEXPECTED, f"{error.filename}: {error.strerror}; make room or give a place that can be used"
    what = f"unexpected {type(error).__name__}: {error}; run `blockexport --debug` with the same and report it"
    return UNEXPECTED, what


def refuse_usage(error: Any, *, as_json: bool) -> int:
    """Say what is wrong with a command line, as every error is said, and give the exit code.

    Args:
        error: a usage error of typer's.
        as_json: whether a JSON document is wanted.
    """
    if "\n" in error.message:
        # The whole help text, which is what a call without a verb asks for.
        error.show()
        return int(error.exit_code)
    command = error.ctx.command_path if error.ctx is not None else "blockexport"
    message = f"{error.format_message().rstrip('.')}; see `{command} --help`"
    _tell(Output(as_json, sys.stdout), type(error).__name__, error.exit_code, message)
    return int(error.exit_code)


def _fail(output: Output, error: BaseException, code: int, message: str) -> None:
    if _debugging.get():
        traceback.print_exception(error, file=sys.stderr)
    _tell(output, type(error).__name__, code, message)
    raise typer.Exit(code) from error


def _tell(output: Output, kind: str, code: int, message: str) -> None:
    line = " ".join(message.split())
    if output.as_json:
        output.json({"error": {"type": kind, "message": line, "exit_code": code}})
    sys.stderr.write(f"blockexport: {line}\n")
