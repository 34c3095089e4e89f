"""`blockexport report`."""

from pathlib import Path
from typing import Annotated

import typer

from blockexport.cli.options import BundleArgument
from blockexport.cli.verb import JsonFlag, Result, quiet_libraries, verb


@verb
def report(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option(help="Where the HTML file goes.")] = Path("report.html"),
    as_json: JsonFlag = False,
) -> Result:
    """Write a report with plots as one HTML file.

    Shows importance per block, quality against depth and measured latency, parity, and sizes.
    """
    quiet_libraries()
    from blockexport.report import write_report

    path = write_report(bundle, out)
    return Result({"path": str(path)}, lambda output: output.line(f"report: {path}"))
