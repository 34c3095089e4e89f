"""A server in a process of its own, and requests to it as a client would send them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

START_S = 60.0


@dataclass(slots=True)
class Asked:
    """One request and what its client saw.

    Attributes:
        status: of HTTP; 0 when the connection failed.
        sent_ms: on the client's clock.
        token_ms: when each piece of text came.
        told: the field `blockexport` of the last piece, or of the error.
        error: what went wrong, in the server's words or those of the connection.
    """

    status: int = 0
    sent_ms: float = 0.0
    token_ms: list[float] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class Server:
    """The address of a server that runs, and its process."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]") -> None:
        self.url, self.process = url, process

    def pss_bytes(self) -> int:
        """Its share of memory."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        (kilobytes,) = [line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")]
        return int(kilobytes) * 1024


@contextmanager
def serving(bundle: Path, port: int, *options: str) -> Iterator[Server]:
    """`blockexport serve` on a bundle."""
    command = [sys.executable, "-m", "blockexport", "serve", str(bundle), "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ)
    url = f"http://127.0.0.1:{port}"
    try:
        _await_health(url, process)
        yield Server(url, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextmanager
def profiled_bundle(bundle: Path | None, threads: int) -> Iterator[Path]:
    """The bundle, or the demo, built and profiled for as many threads."""
    if bundle is not None:
        yield bundle
        return
    from blockexport.pipeline.demo import run_demo
    from blockexport.runtime import load
    from blockexport.runtime.profile import profile

    with tempfile.TemporaryDirectory() as folder:
        built = run_demo(Path(folder), lambda _what, _share: None).bundle.folder
        profile(load(built, threads=threads), quick=True)
        yield built


def _await_health(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stderr is not None
            raise SystemExit(process.stderr.read().decode())
        try:
            if httpx.get(f"{url}/health", timeout=1).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    msg = "the server does not answer"
    raise SystemExit(msg)


async def ask(
    client: httpx.AsyncClient,
    tokens: Sequence[int],
    max_tokens: int,
    *,
    budget_ms: float | None = None,
    on_miss: str = "error",
) -> Asked:
    """Stream one completion."""
    body: dict[str, Any] = {
        "model": client.headers["X-Model"],
        "prompt": list(tokens),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    headers = {} if budget_ms is None else {"X-Budget-Ms": f"{budget_ms:.3f}", "X-On-Miss": on_miss}
    asked = Asked(sent_ms=time.perf_counter() * 1e3)
    try:
        async with client.stream("POST", "/v1/completions", json=body, headers=headers) as reply:
            asked.status = reply.status_code
            if reply.status_code != httpx.codes.OK:
                asked.error = (await reply.aread()).decode()
                return asked
            async for line in reply.aiter_lines():
                _read(line, asked)
    except httpx.HTTPError as error:
        asked.status, asked.error = 0, repr(error)
    return asked


def _read(line: str, asked: Asked) -> None:
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    chunk = json.loads(line[len("data: ") :])
    if "error" in chunk:
        asked.error = json.dumps(chunk["error"])
    for choice in chunk.get("choices", ()):
        asked.token_ms.append(time.perf_counter() * 1e3)
        asked.told = choice.get("blockexport", asked.told)


def make_client(url: str) -> httpx.AsyncClient:
    """A client for any number of streams."""
    # Kept with the client, so that whoever has one knows what to ask for.
    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=600, limits=limits, headers={"X-Model": model})


async def open_loop(
    url: str, prompts: Sequence[Sequence[int]], new_tokens: Sequence[int], at_ms: Sequence[float], budgets_ms: Any
) -> list[Asked]:
    """Send each request at its time, whatever became of those before."""
    async with make_client(url) as client:
        begun = time.perf_counter() * 1e3 + 100.0

        async def at(index: int) -> Asked:
            await asyncio.sleep(max(0.0, (begun + at_ms[index] - time.perf_counter() * 1e3) / 1e3))
            return await ask(client, prompts[index], new_tokens[index], budget_ms=budgets_ms[index])

        return list(await asyncio.gather(*(at(index) for index in range(len(prompts)))))
