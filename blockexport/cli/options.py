"""Arguments that several verbs take, and what their text means."""

from pathlib import Path
from typing import Annotated

import typer

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `blockexport build` wrote.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 lets it choose.")]
BudgetOption = Annotated[
    float | None, typer.Option("--budget-ms", help="What the whole request may take, in milliseconds.")
]
TtftOption = Annotated[float | None, typer.Option("--ttft-ms", help="What the first token may take.")]
TpotOption = Annotated[float | None, typer.Option("--tpot-ms", help="What each further token may take on average.")]


def budget_of(e2e_ms: float | None, ttft_ms: float | None, tpot_ms: float | None) -> LatencyBudget | None:
    """The budget, None when no bound is given.

    Raises:
        ConfigError: a bound is not a positive, finite number.
    """
    if e2e_ms is None and ttft_ms is None and tpot_ms is None:
        return None
    return LatencyBudget(e2e_ms, ttft_ms, tpot_ms)


def require_file_place(path: Path) -> Path:
    """The path, if a file can go there: to be asked before the work whose result it is to hold.

    Raises:
        ConfigError: a folder is there, or what should be its folder is a file.
    """
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not above.is_dir():
        what = f"{path} is a folder" if path.is_dir() else f"{above} is a file"
        msg = f"nothing can be written to {path}: {what}; give --out the path of a file"
        raise ConfigError(msg)
    return path


def parse_numbers(text: str, name: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        ConfigError: an entry is no number.
    """
    try:
        return tuple(float(entry) for entry in text.split(","))
    except ValueError as error:
        msg = f"{name} is {text!r}; give a number, or several separated by commas"
        raise ConfigError(msg) from error


def parse_blocks(text: str, name: str) -> tuple[int, ...]:
    """Block indices separated by commas; none for empty text.

    Raises:
        ConfigError: an entry is no index.
    """
    try:
        return tuple(int(entry) for entry in text.split(",")) if text.strip() else ()
    except ValueError as error:
        msg = f"{name} is {text!r}; give block indices separated by commas, such as 0,11"
        raise ConfigError(msg) from error
