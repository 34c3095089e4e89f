"""Results on stdout, as JSON or for people; progress on stderr."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from blockexport.core.jsonio import dump_json

Advance = Callable[[str, float], None]
"""Told what is being done and the share of the work that is done, 0 to 1."""

# Of a file or pipe, which has no width of its own.
_PLAIN_WIDTH = 160


@dataclass(frozen=True, slots=True)
class Output:
    """Where one verb's result goes.

    Attributes:
        as_json: one JSON document instead of text for people.
        stream: stdout as the verb found it.
    """

    as_json: bool
    stream: TextIO

    def print(self, value: Any, show: "Callable[[Output], None]") -> None:
        """Print a result in the form asked for."""
        if self.as_json:
            self.json(value)
        else:
            show(self)
        self.stream.flush()

    def json(self, value: Any) -> None:
        """Print the one document."""
        self.stream.write(dump_json(value) + "\n")

    def line(self, text: str = "") -> None:
        """Print a line for people."""
        self.stream.write(text + "\n")

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table for people."""
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(*head, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*(escape(cell(value)) for value in row))
        width = None if self.stream.isatty() else _PLAIN_WIDTH
        self.line(title)
        Console(file=self.stream, width=width, highlight=False).print(table)


def cell(value: Any) -> str:
    """A value as tables show it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(cell, value)) or "none"
    return str(value)


def quality_text(quality: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of a level as a manifest holds them, without those of single tasks."""
    figures = [f"{name} {figure['value']:.4g}" for name, figure in quality.items() if "/" not in name]
    return ", ".join(figures) or "-"


@contextmanager
def progress() -> Iterator[Advance]:
    """A progress bar with the time left on stderr; where that is no terminal, one line for each new thing done."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=min(share, 1.0))


def _lines() -> Advance:
    stream = sys.stderr
    last = ""

    def advance(what: str, share: float) -> None:
        nonlocal last
        if what != last:
            stream.write(f"[{share:4.0%}] {what}\n")
            stream.flush()
            last = what

    return advance


def counted(advance: Advance, what: str) -> Callable[[int, int], None]:
    """A callback for steps done and steps in all."""
    return lambda done, total: advance(what, done / max(total, 1))
