"""The application. Importing it, and asking for help, loads neither torch nor transformers nor an engine runtime."""

import sys
from typing import Annotated, Any

import typer

import blockexport
from blockexport.cli.build import build
from blockexport.cli.cache import cache
from blockexport.cli.demo import demo
from blockexport.cli.doctor import doctor
from blockexport.cli.generate import generate
from blockexport.cli.inspect import inspect
from blockexport.cli.plan import plan
from blockexport.cli.profile import profile
from blockexport.cli.report import report
from blockexport.cli.score import score
from blockexport.cli.select import select
from blockexport.cli.serve import serve
from blockexport.cli.study import study
from blockexport.cli.verb import refuse_usage, set_debugging
from blockexport.cli.verify import verify

# In the order in which one meets them.
VERBS = (demo, score, select, build, verify, inspect, profile, plan, generate, serve, report, study, cache, doctor)

app = typer.Typer(
    name="blockexport",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(blockexport.__version__)
        raise typer.Exit


@app.callback()
def _start(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="BLOCKEXPORT_DEBUG", help="Show tracebacks and what libraries print."),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One trained transformer, a ladder of verified depths, one weight file, and a latency budget for each request.

    Exit codes: 0 done, 2 bad input, 3 a gate said no (parity, quality, budget), 1 anything else.
    """
    set_debugging(wanted=debug)


for _verb in VERBS:
    app.command()(_verb)


# typer brings a click of its own under a private name; what it exports of it is a kind of usage error.
_USAGE_ERROR: Any = typer.BadParameter.__base__


def main() -> None:
    """Entry point of the `blockexport` command."""
    try:
        code = app(prog_name="blockexport", standalone_mode=False)
    except _USAGE_ERROR as error:
        code = refuse_usage(error, as_json="--json" in sys.argv)
    sys.exit(code)
