"""`blockexport report`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from blockexport.cli.options import BundleArgument
from blockexport.cli.verb import JsonFlag, Result, quiet_libraries, verb


@verb
def report(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option(help="Where the HTML file goes.")] = Path("report.html"),
    switch_data: Annotated[
        str | None, typer.Option(help="Texts to measure the quality of going up half way on: a demo or a file.")
    ] = None,
    switch_samples: Annotated[int, typer.Option(min=1, help="How many of them; each is read token by token.")] = 16,
    as_json: JsonFlag = False,
) -> Result:
    """Write a report with plots as one HTML file.

    Shows importance per block, quality against depth and measured latency, what a switch up costs, parity, and sizes.
    """
    quiet_libraries()
    from blockexport.report import measure_switching, write_report

    switching = None if switch_data is None else measure_switching(bundle, switch_data, switch_samples)
    path = write_report(bundle, out, switching=switching)
    value: dict[str, Any] = {"path": str(path)}
    if switching is not None:
        value["switching"] = switching.to_json()
    return Result(value, lambda output: output.line(f"report: {path}"))
