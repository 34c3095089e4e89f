"""`blockexport demo`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from blockexport.cli.output import Output, progress, quality_text
from blockexport.cli.verb import JsonFlag, Result, quiet_libraries, verb

_REPORT_BEGINS = 0.98


@verb
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the bundle and the report.")] = Path("demo-output"),
    as_json: JsonFlag = False,
) -> Result:
    """Run the whole pipeline on a shipped model.

    Scores and compares, builds and proves a ladder, measures it on this host, answers prompts, writes a report.
    """
    quiet_libraries()
    from blockexport.pipeline.demo import run_demo
    from blockexport.report import write_report

    with progress() as advance:
        result = run_demo(out, lambda what, share: advance(what, _REPORT_BEGINS * share))
        advance("writing the report", _REPORT_BEGINS)
        report = write_report(result.bundle.folder, out / "report.html")
    value = result.to_json() | {"report": str(report)}
    return Result(value, lambda output: _show(output, value))


def _show(output: Output, value: dict[str, Any]) -> None:
    rows = [
        (
            level["name"],
            level["depth"],
            quality_text(level["quality"]),
            level["prefill_ms"],
            level["decode_ms"],
            f"{level['speedup']:.2f}x",
        )
        for level in value["levels"]
    ]
    head = ("level", "blocks", "quality", "prompt ms", "ms per token", "speed")
    output.table("Depth ladder", head, rows)
    output.table(
        "Answers under a latency budget",
        ("prompt", "budget ms", "level", "predicted ms", "observed ms", "answer"),
        [
            (repr(a["prompt"]), a["budget_ms"], a["level"], a.get("predicted_ms"), a.get("observed_ms"), _said(a))
            for a in value["answers"]
        ],
    )
    output.line(f"bundle: {value['bundle']}")
    output.line(f"report: {value['report']}")


def _said(answer: dict[str, Any]) -> str:
    if answer["text"] is None:
        return f"infeasible; the fastest level needs {answer['fastest_ms']:.3g} ms"
    return repr(answer["text"])
