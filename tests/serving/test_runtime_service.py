"""Requests from several threads, and everything that may happen to them."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError, RequestError, ServiceClosedError
from blockexport.routing.contract import Contract
from blockexport.runtime import Runtime, load
from blockexport.serving.runtime_service import RuntimeService
from blockexport.serving.service import Ending, GenerationRequest, Promise
from blockexport.testing.tiny_models import VOCAB_SIZE

pytestmark = pytest.mark.slow

COEFFICIENTS = {"prefill": (0.1, 0.0, 0.0, 0.01, 0.01, 0.0), "decode": (0.1, 0.0, 0.1, 0.0, 0.0)}
WAIT_S = 60


class Caller:
    """Keeps what it hears, in order."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.tokens: list[tuple[int, str]] = []
        self.promise: Promise | None = None
        self.first, self.done = threading.Event(), threading.Event()
        self.ending: Ending | None = None

    def on_promise(self, promise: Promise, /) -> None:
        self.heard.append("promise")
        self.promise = promise

    def on_token(self, token: int, level: str, /) -> None:
        self.heard.append("token")
        self.tokens.append((token, level))
        self.first.set()

    def on_end(self, ending: Ending, /) -> None:
        self.heard.append("end")
        self.ending = ending
        self.done.set()

    def wait(self) -> Ending:
        assert self.done.wait(WAIT_S)
        assert self.ending is not None
        return self.ending


def _runtime(bundle: Path) -> Runtime:
    runtime = load(bundle, threads=1, verify=False)
    phases = {name: SimpleNamespace(coefficients=values, table=None) for name, values in COEFFICIENTS.items()}
    runtime.__dict__["profile"] = SimpleNamespace(fit=SimpleNamespace(phase=phases.__getitem__))
    return runtime


@pytest.fixture
def service(tiny_bundle: Path) -> Iterator[RuntimeService]:
    service = RuntimeService(_runtime(tiny_bundle), max_rows=3, max_waiting=200)
    yield service
    service.close()


def _request(seed: int = 0, max_new_tokens: int = 8, **terms: Any) -> GenerationRequest:
    rng = np.random.default_rng(seed)
    prompt = tuple(rng.integers(1, VOCAB_SIZE, int(rng.integers(1, 12))).tolist())
    return GenerationRequest(prompt, max_new_tokens, Contract(**terms))


def test_requests_of_many_threads_all_get_their_own_answers(service: RuntimeService, tiny_bundle: Path) -> None:
    callers = [Caller() for _ in range(48)]

    def ask(first: int) -> None:
        for number in range(first, len(callers), 6):
            service.submit(_request(number), callers[number])

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = load(tiny_bundle, threads=1, verify=False)
    for number, caller in enumerate(callers):
        ending = caller.wait()
        assert (ending.outcome, ending.finish_reason) == ("served", "length")
        assert caller.heard == ["promise", *["token"] * 8, "end"]
        assert sum(ending.tokens_at.values()) == 8
        switches = {index: level for index, (_, level) in enumerate(caller.tokens)}
        prompt = list(_request(number).tokens)
        expected = alone.generate(prompt, 8, level=switches[0], switches=switches, stop_tokens=()).tokens
        assert [token for token, _ in caller.tokens] == expected
        assert caller.promise is not None
        assert caller.promise.bound_ms >= caller.promise.predicted_ms > 0
    assert service.promises.coverage.overall is not None
    state = service.state()
    assert (state["running"], state["waiting"], state["kv_tokens"]) == (0, 0, 0)


def test_what_is_given_up_ends_and_the_others_do_not_notice(service: RuntimeService) -> None:
    one, other, waiting = Caller(), Caller(), Caller()
    handle = service.submit(_request(0, 50), one)
    service.submit(_request(1, 50), other)
    assert one.first.wait(WAIT_S)
    handle.cancel()
    handle.cancel()
    gone = service.submit(_request(2, 50), waiting)
    gone.cancel()
    assert one.wait().outcome == "cancelled"
    assert waiting.wait().outcome == "cancelled"
    assert other.wait().outcome == "served"
    assert len(other.tokens) == 50
    assert service.promises.coverage.overall is not None


def test_a_budget_that_no_level_keeps_is_refused_with_a_reason(service: RuntimeService) -> None:
    caller = Caller()
    service.submit(_request(0, 50, budget=LatencyBudget(e2e_ms=0.01)), caller)
    ending = caller.wait()
    assert (ending.outcome, ending.retry_after_ms, caller.heard) == ("shed", None, ["end"])
    assert "no level keeps the budget" in ending.reason


def test_a_full_queue_says_when_to_come_back(tiny_bundle: Path) -> None:
    service = RuntimeService(_runtime(tiny_bundle), max_rows=1, max_waiting=1)
    hold, callers = threading.Event(), [Caller() for _ in range(4)]
    service.run(hold.wait)
    for caller in callers:
        service.submit(_request(0, 30), caller)
    hold.set()
    endings = [caller.wait() for caller in callers]
    refused = [ending for ending in endings if ending.outcome == "shed"]
    assert len(refused) == 3
    assert all(ending.retry_after_ms and ending.retry_after_ms > 0 for ending in refused)
    service.close()


def test_impossible_requests_are_refused_at_once(service: RuntimeService) -> None:
    for request in (
        GenerationRequest((), 4),
        GenerationRequest((VOCAB_SIZE + 1,), 4),
        GenerationRequest((1, 2), 10_000),
        GenerationRequest((1, 2), 0),
        GenerationRequest((1, 2), 4, Contract(task="unknown")),
        GenerationRequest((1, 2), 4, pictures={"images": np.zeros((1, 1, 4, 4), np.float32)}),
    ):
        with pytest.raises(RequestError):
            service.submit(request, Caller())


def test_calls_run_in_the_thread_of_the_engine(service: RuntimeService) -> None:
    assert service.run(lambda: threading.current_thread().name).result(WAIT_S) == "engine"

    def fail() -> None:
        msg = "no"
        raise RequestError(msg)

    with pytest.raises(RequestError, match="no"):
        service.run(fail).result(WAIT_S)
    caller = Caller()
    service.submit(_request(), caller)
    assert caller.wait().outcome == "served"


def test_draining_ends_what_runs_and_takes_nothing_in(service: RuntimeService) -> None:
    caller = Caller()
    service.submit(_request(0, 50), caller)
    assert service.drain(WAIT_S)
    assert caller.wait().outcome == "served"
    with pytest.raises(ServiceClosedError):
        service.submit(_request(), Caller())


def test_a_trace_holds_what_was_decided_told_and_done(tiny_bundle: Path, tmp_path: Path) -> None:
    service = RuntimeService(_runtime(tiny_bundle), max_rows=1, trace=tmp_path / "trace.jsonl")
    callers = [Caller(), Caller()]
    for number, caller in enumerate(callers):
        service.submit(_request(number), caller)
    endings = [caller.wait() for caller in callers]
    service.close()
    events = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    ends = [event for event in events if event["event"] == "end"]
    assert [event["observed_ms"] for event in ends] == [ending.observed_ms for ending in endings]
    promises = [event for event in events if event["event"] == "promise"]
    assert [event["bound_ms"] for event in promises] == [
        caller.promise.bound_ms for caller in callers if caller.promise
    ]
    decided, ran = ([event for event in events if event["event"] == what] for what in ("decision", "step"))
    assert [(event["kind"], event["level"]) for event in ran] == [(event["kind"], event["level"]) for event in decided]
    # The first token of an answer comes from its prompt.
    assert sum(event["num_tokens"] for event in ran if event["kind"] == "decode") == 2 * (8 - 1)


def test_closing_ends_everything(tiny_bundle: Path) -> None:
    service = RuntimeService(_runtime(tiny_bundle), max_rows=1)
    callers = [Caller() for _ in range(3)]
    for caller in callers:
        service.submit(_request(0, 50), caller)
    service.close()
    assert {caller.wait().outcome for caller in callers} <= {"served", "cancelled"}
    assert "engine" not in {thread.name for thread in threading.enumerate()}


def test_a_defect_in_a_step_reaches_every_caller(service: RuntimeService, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any) -> None:
        raise AssertionError

    caller, later = Caller(), Caller()
    with monkeypatch.context() as patched:
        patched.setattr(service._engine, "extend", fail)
        service.submit(_request(), caller)
        assert caller.wait().outcome == "failed"
    service.submit(_request(), later)
    assert later.wait().outcome == "served"


def test_an_unknown_policy_names_those_there_are(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"priced, slackfit, .*fixed:d3"):
        RuntimeService(_runtime(tiny_bundle), policy="best")


def test_who_waited_too_long_is_told_when_to_come_back(tiny_bundle: Path) -> None:
    service = RuntimeService(_runtime(tiny_bundle), max_rows=1)
    hold, first, late = threading.Event(), Caller(), Caller()
    service.submit(_request(0, 50), first)
    assert first.first.wait(WAIT_S)
    service.run(hold.wait)
    service.submit(_request(1, 50, budget=LatencyBudget(e2e_ms=60.0)), late)
    assert not late.done.wait(0.2)
    hold.set()
    ending = late.wait()
    assert ending.outcome == "shed"
    assert ending.retry_after_ms is not None
    service.close()
