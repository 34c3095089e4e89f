"""Settings that are refused, bodies that do not come, clients that do not read, and an orderly end."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from blockexport.errors import ConfigError
from blockexport.server.limits import BodyLimit
from blockexport.server.mailbox import Mailbox, MailboxListener
from blockexport.server.run import listen
from blockexport.server.settings import ServerSettings


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.com"])
def test_other_machines_are_let_in_only_with_a_token_or_a_word(host: str) -> None:
    with pytest.raises(ConfigError, match="--api-key"):
        ServerSettings(host=host)
    ServerSettings(host=host, api_key="long-enough")
    ServerSettings(host=host, allow_anonymous=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.0.1"])
def test_this_machine_needs_none(host: str) -> None:
    assert ServerSettings(host=host).api_key is None


@pytest.mark.parametrize("bad", [{"port": -1}, {"port": 70_000}, {"api_key": ""}, {"api_key": "short"}])
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ServerSettings(**bad)


def test_a_port_that_is_taken() -> None:
    with listen(ServerSettings(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}"):
            listen(ServerSettings(port=port))


def test_a_body_that_does_not_come() -> None:
    async def never() -> Message:
        await asyncio.sleep(3600)
        raise AssertionError

    async def unreachable(*_: Any) -> None:
        raise AssertionError

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(BodyLimit(unreachable, 100, 0.01)(scope, never, send))
    assert sent[0]["status"] == 408
    assert "did not arrive" in json.loads(sent[1]["body"])["error"]["message"]


def test_a_mailbox_that_nobody_empties_holds_so_much_and_no_more() -> None:
    async def fill() -> tuple[int, list[bool]]:
        told: list[bool] = []
        mailbox = Mailbox(10, lambda: told.append(True))
        listener = MailboxListener(mailbox, 0)
        thread = threading.Thread(target=lambda: [listener.on_token(i, "d4") for i in range(1000)])
        thread.start()
        thread.join()
        return len(await mailbox.take()), told

    assert asyncio.run(fill()) == (10, [True])


def test_a_mailbox_waits_through_a_wake_up_that_finds_nothing() -> None:
    async def wait() -> list[Any]:
        mailbox = Mailbox(10, lambda: None)
        listener = MailboxListener(mailbox, 0)
        listener.on_token(1, "d4")
        first = await mailbox.take()
        mailbox._news.set()
        asyncio.get_running_loop().call_later(0.01, listener.on_token, 2, "d4")
        second = await mailbox.take()
        mailbox.expire()
        return [len(first), len(second), len(await mailbox.take())]

    assert asyncio.run(wait()) == [1, 1, 0]


def test_a_client_that_never_reads_is_given_up(service: Any, serving: Any, tiny_model: Any) -> None:
    # Far more text than sockets hold, and not so fast that the event loop falls behind before they are full.
    service.token_s = 0.001
    service.spec = tiny_model.spec.model_copy(update={"context_tokens": 0})
    long = replace(tiny_model, spec=service.spec, tokenizer=_Loud())
    settings = ServerSettings(port=0, stall_timeout_s=0.5, max_new_tokens=100_000)
    with serving(service, settings, long) as running:
        port = int(running.url.rpartition(":")[2])
        body = json.dumps({"model": "tiny", "prompt": [1], "max_tokens": 100_000, "stream": True, "ignore_eos": True})
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            deadline = time.monotonic() + 30
            while not service.endings and time.monotonic() < deadline:
                time.sleep(0.01)
            assert service.endings[0].outcome == "cancelled"
            # Another client is served meanwhile, and nothing of the first is kept.
            with socket.create_connection(("127.0.0.1", port)) as other:
                other.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert b'"ok"' in other.makefile("rb").read()
            while running.server.server_state.connections and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not running.server.server_state.connections


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "half a head"])
def test_a_client_that_never_asks_is_dropped(service: Any, serving: Any, sent: bytes) -> None:
    with serving(service, ServerSettings(port=0, body_timeout_s=0.2)) as running:
        port = int(running.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(sent)
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""


def test_a_client_may_ask_again_after_a_pause(service: Any, serving: Any) -> None:
    import httpx2

    with serving(service, ServerSettings(port=0, body_timeout_s=1.0)) as running, httpx2.Client() as client:
        for _ in range(3):
            assert client.get(f"{running.url}/health").json() == {"status": "ok"}
            time.sleep(0.6)
        assert len(running.server.server_state.connections) == 1


class _Loud:
    """Much text for each token."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(65 + token) * 65536 for token in tokens)


def test_running_answers_end_before_the_server_does(service: Any, serving: Any) -> None:
    import httpx2

    service.gate.clear()
    with serving(service, ServerSettings(port=0)) as running:
        answers: list[Any] = []
        body = {"model": "tiny", "prompt": "w1", "max_tokens": 4}
        asking = threading.Thread(
            target=lambda: answers.append(httpx2.post(f"{running.url}/v1/completions", json=body, timeout=30))
        )
        asking.start()
        while not service.requests:
            time.sleep(0.005)
        running.server.should_exit = True
        while any(listener.is_serving() for listener in running.server.servers):
            time.sleep(0.005)
        service.gate.set()
        asking.join(20)
        assert answers[0].json()["choices"][0]["text"] == "w2 w3 w4 w5"
    assert service.is_drained
    assert service.is_closed


@pytest.mark.parametrize(("number", "after_s"), [("SIGTERM", 0.5), ("SIGINT", 0.5), ("SIGTERM", 0)])
def test_a_signal_ends_the_process_with_success(number: str, after_s: float) -> None:
    code = f"""
import os, runpy, signal, threading
given = runpy.run_path({str(Path(__file__).parent / "conftest.py")!r})
from blockexport.server.run import run
service, settings = given["FakeService"](), given["ServerSettings"](port=0)
ready = lambda url: threading.Timer({after_s}, os.kill, (os.getpid(), signal.{number})).start()
run(given["build_app"](given["MODEL"], service, settings), settings, ready)
print("drained", service.is_drained, "closed", service.is_closed)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "drained True closed True\n"), done.stderr
