"""`blockexport profile`."""

from typing import Annotated

import typer

from blockexport.cli.options import BundleArgument, ThreadsOption
from blockexport.cli.output import Output, counted, progress
from blockexport.cli.verb import JsonFlag, Result, verb
from blockexport.core.latency import LatencyProfile


@verb
def profile(
    bundle: BundleArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Few shapes and repeats, within 20 s.")] = False,
    time_limit: Annotated[float | None, typer.Option(help="Stop measuring after so many seconds.")] = None,
    threads: ThreadsOption = 0,
    as_json: JsonFlag = False,
) -> Result:
    """Measure every level on this host.

    Fits the latency model that `plan` and `generate` decide by, and keeps it in the bundle.
    """
    import blockexport

    runtime = blockexport.load(bundle, threads=threads)
    with progress() as advance:
        found = blockexport.profile(
            runtime, quick=quick, time_limit_s=time_limit, on_progress=counted(advance, "measuring")
        )
    value = {
        "host": found.host.to_json(),
        "threads": found.threads,
        "quick": quick,
        "levels": found.level_summary(),
        "fit": found.fit.model_dump(mode="json"),
        "latency_model": found.fit.bases,
    }
    if found.vision is not None:
        value["vision"] = {
            "levels": found.vision.level_summary(),
            "fit": found.vision.fit.model_dump(mode="json"),
        }
    return Result(value, lambda output: _show(output, found))


def _show(output: Output, found: LatencyProfile) -> None:
    keys = ("name", "depth", "prefill_ms", "decode_ms", "p50", "p95", "n", "prompt_tokens", "kv_tokens")
    rows = [[row[key] for key in keys] for row in found.level_summary()]
    output.line(f"{found.host.cpu}, {found.host.num_cpus} CPUs, {found.threads} threads")
    output.table("Latency", ("level", "blocks", *keys[2:]), rows)
    for phase, basis in found.fit.bases.items():
        output.line(f"{phase} is predicted by {basis}")
    if found.vision is not None:
        sides = [[row[key] for key in keys[:7]] for row in found.vision.level_summary()]
        output.table("Reading one crop of a picture, at every level", ("level", "blocks", *keys[2:7]), sides)
