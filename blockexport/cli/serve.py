"""`blockexport serve`."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from blockexport.cli.options import BundleArgument, ThreadsOption, require_file_place
from blockexport.cli.verb import JsonFlag, Result, current_output, verb


@verb
def serve(
    bundle: BundleArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="BLOCKEXPORT_API_KEY", help="Token that callers must show; needed beyond this machine."),
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Let other machines in without a token.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="What callers call the model; else its own name.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Jinja file to use in place of the bundle's.")] = None,
    policy: Annotated[str, typer.Option(help="How levels are picked for all that run and wait.")] = "priced",
    max_rows: Annotated[int, typer.Option(min=1, help="Most requests that share a step.")] = 4,
    max_waiting: Annotated[int, typer.Option(min=0, help="Most requests that wait; more are refused.")] = 64,
    max_stall_ms: Annotated[
        float | None, typer.Option(help="Longest time that a prompt may hold up running answers.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Share of requests that may exceed their bound.")] = 0.05,
    max_body_bytes: Annotated[int, typer.Option(min=1024, help="Largest request.")] = 2**23,
    request_timeout_s: Annotated[float, typer.Option(min=1, help="Longest time of an answer.")] = 600.0,
    drain_timeout_s: Annotated[float, typer.Option(min=0, help="What running answers get when told to stop.")] = 30.0,
    threads: ThreadsOption = 0,
    trace: Annotated[
        Path | None, typer.Option(help="File to add every decision and what came of it to, as JSON lines.")
    ] = None,
    as_json: JsonFlag = False,
) -> Result:
    """Serve a bundle over HTTP until told to stop.

    OpenAI-compatible endpoints with latency budgets, tensors by the Open Inference Protocol, /metrics, and a page at /
    that shows what happens. Listens on this machine only unless told otherwise.
    """
    import blockexport
    from blockexport.server.app import build_app
    from blockexport.server.model import ServedModel
    from blockexport.server.run import run
    from blockexport.server.settings import ServerSettings
    from blockexport.serving.runtime_service import serve_runtime

    settings = ServerSettings(
        host=host,
        port=port,
        api_key=api_key,
        allow_anonymous=allow_anonymous,
        max_body_bytes=max_body_bytes,
        request_timeout_s=request_timeout_s,
        drain_timeout_s=drain_timeout_s,
    )
    runtime = blockexport.load(bundle, threads=threads)
    model = ServedModel.of(runtime, name=name, template=chat_template)
    service = None
    if runtime.spec.kind == "decoder":
        service = serve_runtime(
            runtime,
            policy=policy,
            max_rows=max_rows,
            max_waiting=max_waiting,
            max_stall_ms=max_stall_ms,
            alpha=alpha,
            trace=None if trace is None else require_file_place(trace),
        )
    else:
        runtime.warm_up()
    _log_to_stderr()
    output, addresses = current_output(), list[str]()

    def ready(url: str) -> None:
        addresses.append(url)
        stream = sys.stderr if output.as_json else output.stream
        stream.write(f"Serving {model.name} at {url}\n")
        stream.flush()

    run(build_app(model, service, settings), settings, ready)
    return Result({"model": model.name, "url": addresses[0]}, lambda shown: shown.line("Stopped."))


def _log_to_stderr() -> None:
    """Unlike other verbs, this one meets its errors while it goes on; the frame around it puts silence back."""
    logging.disable(logging.NOTSET)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
