"""A service that needs no engine, a model of a handful of words, and a server around them."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from blockexport.core.model import ModelSpec
from blockexport.runtime.prompts import check_room
from blockexport.server.app import build_app
from blockexport.server.chat_template import ChatTemplate
from blockexport.server.model import ServedModel
from blockexport.server.settings import ServerSettings
from blockexport.serving.service import Ending, GenerationRequest, Listener, Outcome, Promise

WORDS = [f"w{i}" for i in range(40)]
END = 39
SPEC = ModelSpec(
    name="tiny",
    architecture="TinyForCausalLM",
    kind="decoder",
    num_blocks=4,
    digest="0" * 64,
    vocab_size=len(WORDS),
    context_tokens=64,
    stop_tokens=(END,),
)
LEVELS = ({"name": "d4", "depth": 4, "quality": {}}, {"name": "d2", "depth": 2, "quality": {}})
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant"


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return tokenizer


@dataclass(eq=False)
class FakeHandle:
    is_cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.is_cancelled.set()


@dataclass(eq=False)
class FakeService:
    """Answers each prompt with the words that follow its last one, from a thread of its own for each request.

    Attributes:
        refuse: an ending to give in place of an answer.
        fail_after: outcome that ends an answer, and the number of tokens before it.
        gate: tokens wait for it.
        token_s: time of a token.
    """

    spec: ModelSpec = SPEC
    refuse: Ending | None = None
    fail_after: tuple[Outcome, int] | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    token_s: float = 0.0
    requests: list[GenerationRequest] = field(default_factory=list)
    handles: list[FakeHandle] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    is_drained: bool = False
    is_closed: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    def submit(self, request: GenerationRequest, listener: Listener, /) -> FakeHandle:
        check_room(len(request.tokens), request.max_new_tokens, self.spec)
        handle = FakeHandle()
        self.requests.append(request)
        self.handles.append(handle)
        thread = threading.Thread(target=self._answer, args=(request, listener, handle), daemon=True)
        self.threads.append(thread)
        thread.start()
        return handle

    def state(self) -> Mapping[str, Any]:
        running = sum(thread.is_alive() for thread in self.threads)
        return {
            "running": running,
            "waiting": 3,
            "levels": [{"name": level["name"], "depth": level["depth"], "breaker": "closed"} for level in LEVELS],
            "slowdown": 1.25,
            "coverage": {"steps": 0.96, "worst_minute": None},
            "kv_tokens": 10 * running,
            "kv_capacity_tokens": 100,
        }

    def run(self, call: Callable[[], Any], /) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        return future

    def drain(self, timeout_s: float) -> bool:
        self.is_drained = True
        for thread in self.threads:
            thread.join(timeout_s)
        return True

    def close(self) -> None:
        self.is_closed = True
        self.gate.set()

    def _answer(self, request: GenerationRequest, listener: Listener, handle: FakeHandle) -> None:
        ending = self._ending(request, listener, handle)
        self.endings.append(ending)
        listener.on_end(ending)

    def _ending(self, request: GenerationRequest, listener: Listener, handle: FakeHandle) -> Ending:
        if self.refuse is not None:
            return self.refuse
        listener.on_promise(Promise("d4", 10.0, 20.0, "the deepest; ünd in time"))
        given = {"d4": 0, "d2": 0}
        token = request.tokens[-1]
        for number in range(request.max_new_tokens):
            while not self.gate.wait(0.01) and not handle.is_cancelled.is_set():
                pass
            if self.token_s:
                time.sleep(self.token_s)
            if handle.is_cancelled.is_set():
                return ended("cancelled", given)
            if self.fail_after is not None and number == self.fail_after[1]:
                return ended(self.fail_after[0], given)
            token = (token + 1) % len(WORDS)
            if token in request.stop_tokens:
                return ended("served", given, "stop")
            level = "d4" if number < 4 else "d2"
            given[level] += 1
            listener.on_token(token, level)
        return ended("served", given, "length")


def ended(outcome: Outcome, given: Mapping[str, int], finish_reason: Any = None) -> Ending:
    num_tokens = sum(given.values())
    return Ending(
        outcome=outcome,
        finish_reason=finish_reason,
        reason="as told",
        tokens_at=dict(given),
        num_switches=int(given["d2"] > 0),
        ttft_ms=2.0 if num_tokens else None,
        observed_ms=12.0,
        is_in_time=outcome == "served",
    )


def forward(inputs: Mapping[str, NDArray[Any]], level: str | None) -> NDArray[np.float32]:
    """Logits (batch, tokens, vocab) that say token and level."""
    tokens = inputs["input_ids"]
    logits = np.zeros((*tokens.shape, len(WORDS)), np.float32)
    np.put_along_axis(logits, tokens[..., None], 4.0 if level == "d4" else 2.0, -1)
    return logits


MODEL = ServedModel("tiny", SPEC, LEVELS, forward, word_tokenizer(), ChatTemplate(TEMPLATE, {}))


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[TestClient]:
    # Raising what the server answers with 500 would hide the answer.
    app = build_app(MODEL, service, ServerSettings(port=0, max_body_bytes=2**16))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@dataclass(frozen=True)
class Running:
    """A server on a loopback port."""

    url: str
    service: FakeService
    server: Any


@contextmanager
def run_server(service: FakeService, settings: ServerSettings, model: ServedModel = MODEL) -> Iterator[Running]:
    from blockexport.server.run import listen, server_of

    listener = listen(settings)
    server = server_of(build_app(model, service, settings), settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", service, server)
    finally:
        service.gate.set()
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture
def tiny_model() -> ServedModel:
    return MODEL


@pytest.fixture
def serving() -> Any:
    return run_server


@pytest.fixture
def running(service: FakeService) -> Iterator[Running]:
    with run_server(service, ServerSettings(port=0, api_key="a-key-for-tests")) as running:
        yield running
