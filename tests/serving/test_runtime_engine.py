"""Requests that come, go and change levels together, against each of them alone; and engines that fail."""

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockexport.errors import EngineFaultError
from blockexport.routing.contract import Contract
from blockexport.routing.costs import StepCosts
from blockexport.routing.ladder import Ladder
from blockexport.routing.lengths import LengthPredictor
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.step import BatchState, StepPlan, StepPolicy
from blockexport.routing.steps.fixed import FixedDepth
from blockexport.routing.ticket import Ticket
from blockexport.runtime import Runtime, load
from blockexport.runtime.sampling import Sampling
from blockexport.serving.answer import Answer
from blockexport.serving.runtime_engine import RuntimeEngine
from blockexport.serving.scheduler import Scheduler
from blockexport.testing.tiny_models import VOCAB_SIZE

pytestmark = pytest.mark.slow

LEVELS = ("d4", "d3", "d2")
LADDER = Ladder(LEVELS, (4, 3, 2), {None: (1.0, 0.8, 0.4)})
COSTS = StepCosts((0.0, 0.0, 0.0, 0.0, 0.01, 0.0), (0.0, 0.0, 0.04, 0.01, 0.0))
RUBBISH = 1e3


class Restless(FixedDepth):
    """Changes the level of some of the running with every decision, and takes in whoever waits."""

    def __init__(self, seed: int) -> None:
        super().__init__(0)
        object.__setattr__(self, "rng", np.random.default_rng(seed))

    def decide(self, state: BatchState, /) -> StepPlan:
        rng: np.random.Generator = self.rng  # type: ignore[attr-defined]
        level = int(rng.integers(len(LEVELS)))
        if state.has_room and rng.random() < 0.5:
            return StepPlan("prefill", (state.waiting[0],), level, "", {})
        if not state.running:
            return StepPlan("prefill", (state.waiting[0],), level, "", {})
        chosen = [row for row in state.running if rng.random() < 0.6] or [state.running[0]]
        return StepPlan("decode", tuple(chosen), level, "", {})


class Served:
    """A scheduler on real engines, and the tokens that each request got."""

    def __init__(
        self, runtime: Runtime, policy: StepPolicy, max_rows: int = 4, engines: Any = None, **options: Any
    ) -> None:
        self.runtime, self.now_ms = runtime, 0.0
        self.engine = LoggedEngine(self, engines or runtime.engines, max_rows, **options)
        self.scheduler = Scheduler(
            self.engine,
            policy,
            LADDER,
            OnlineLatency(COSTS, len(LEVELS)),
            LengthPredictor(),
            clock=lambda: self.now_ms,
            max_rows=max_rows,
            block_steps=3,
            on_end=lambda ticket, outcome: self.ended.append((ticket, outcome)),
        )
        self.tokens: dict[int, list[tuple[int, int]]] = {}
        self.prompts: dict[int, np.ndarray] = {}
        self.ended: list[tuple[Ticket, str]] = []

    def submit(self, rng: np.random.Generator, max_new_tokens: int, sampling: Sampling | None = None) -> Ticket:
        prompt = rng.integers(1, VOCAB_SIZE, int(rng.integers(1, 12)))
        ticket = self.scheduler.submit(len(prompt), max_new_tokens, Contract()).ticket
        heard = self.tokens[ticket.number] = []
        self.prompts[ticket.number] = prompt
        answer = Answer(prompt, max_new_tokens, sampling or Sampling(), frozenset(), lambda *token: heard.append(token))
        self.engine.open(ticket, answer)
        return ticket

    def run(self) -> None:
        while self.scheduler.step() or self.scheduler.is_busy:
            self.now_ms += 20.0

    def alone(self, number: int, sampling: Sampling | None = None) -> list[int]:
        """What a session of the runtime answers, with the same levels at the same tokens."""
        heard = self.tokens[number]
        chosen = []
        with self.runtime.start([self.prompts[number].tolist()], level=LEVELS[heard[0][1]], sampling=sampling) as one:
            for _, level in heard:
                one.switch(LEVELS[level])
                chosen.append(int(one.step()[0]))
        return chosen


class LoggedEngine(RuntimeEngine):
    """Keeps the calls that went well."""

    def __init__(self, served: Served, engines: Any, max_rows: int, **options: Any) -> None:
        super().__init__(engines, max_rows, **options)
        self.calls: list[tuple[Any, ...]] = []
        self._served = served

    def extend(self, ticket: Ticket, level: int, first: int, num_tokens: int, /) -> None:
        self._served.now_ms += 1.0
        super().extend(ticket, level, first, num_tokens)
        self.calls.append((ticket.number, "extend", level, first, num_tokens))

    def decode(self, tickets: Sequence[Ticket], level: int, num_steps: int, /) -> tuple[int, Sequence[Ticket]]:
        self._served.now_ms += 1.0
        try:
            taken, ended = super().decode(tickets, level, num_steps)
        except EngineFaultError as error:
            self.calls += [(ticket.number, "decode", level, error.steps_taken) for ticket in tickets]
            raise
        self.calls += [(ticket.number, "decode", level, taken) for ticket in tickets]
        return taken, ended


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> Runtime:
    return load(tiny_bundle, threads=1, verify=False, kv_tokens=16)


@pytest.mark.parametrize("seed", range(6))
def test_requests_that_share_steps_get_the_tokens_each_would_get_alone(runtime: Runtime, seed: int) -> None:
    rng = np.random.default_rng(seed)
    served = Served(runtime, Restless(seed))
    sampling = Sampling(temperature=1.0, seed=3) if seed % 2 else None
    for _ in range(9):
        served.submit(rng, int(rng.integers(1, 30)), sampling)
        for _ in range(int(rng.integers(6))):
            served.scheduler.step()
    served.run()
    assert [outcome for _, outcome in served.ended] == ["served"] * 9
    assert max(ticket.num_switches for ticket, _ in served.ended) >= 2
    for number, heard in served.tokens.items():
        assert served.alone(number, sampling) == [token for token, _ in heard]


def test_memory_that_grows_meanwhile_keeps_what_rows_hold(runtime: Runtime) -> None:
    served = Served(runtime, FixedDepth(0), step_tokens=16)
    first = served.submit(np.random.default_rng(0), 10)
    before = served.engine.cache.capacity_tokens
    for _ in range(5):
        served.scheduler.step()
    served.submit(np.random.default_rng(1), before + 1)
    assert served.engine.cache.capacity_tokens > before
    served.run()
    assert served.alone(first.number) == [token for token, _ in served.tokens[first.number]]


def test_a_cancelled_request_frees_its_row(runtime: Runtime) -> None:
    served = Served(runtime, FixedDepth(0), max_rows=1)
    rng = np.random.default_rng(0)
    for _ in range(5):
        ticket = served.submit(rng, 50)
        served.scheduler.step()
        assert ticket in served.scheduler.running
        served.scheduler.cancel(ticket)
        assert not served.engine.answers
    last = served.submit(rng, 5)
    served.run()
    assert len(served.tokens[last.number]) == 5


def test_a_stop_token_ends_an_answer_and_is_not_handed_out(runtime: Runtime) -> None:
    served = Served(runtime, FixedDepth(0))
    ticket = served.submit(np.random.default_rng(0), 20)
    served.run()
    whole = [token for token, _ in served.tokens[ticket.number]]
    stop = whole[5]
    heard: list[int] = []
    again = served.scheduler.submit(ticket.prompt_tokens, 20, Contract()).ticket
    prompt = served.prompts[ticket.number]
    answer = Answer(prompt, 20, Sampling(), frozenset({stop}), lambda token, _level: heard.append(token))
    served.engine.open(again, answer)
    served.run()
    assert heard == whole[: whole.index(stop)]
    assert answer.stopped


class Fault:
    """Decides, call by call, whether and how an engine fails; what it then leaves in the cache is rubbish."""

    def __init__(self, seed: int, rate: float) -> None:
        self._rng, self._rate = np.random.default_rng(seed), rate
        self.injected: Counter[str] = Counter()
        self.interrupted = threading.Event()

    def draw(self) -> str | None:
        if self._rng.random() > self._rate:
            return None
        kind = str(self._rng.choice(["raise", "nan", "shape", "hang"], p=[0.39, 0.3, 0.3, 0.01]))
        self.injected[kind] += 1
        return kind


class FaultyEngines:
    """The engines of a ladder, but for some of their calls."""

    def __init__(self, engines: Any, fault: Fault) -> None:
        self._engines, self.fault = engines, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engines, name)

    def decoder(self, level: str) -> Any:
        return FaultyDecoder(self._engines.decoder(level), self.fault)


class FaultyDecoder:
    def __init__(self, decoder: Any, fault: Fault) -> None:
        self._decoder, self._fault = decoder, fault

    def bind(self, rows: Any) -> Any:
        return FaultyBound(self._decoder.bind(rows), rows, self._fault)

    def interrupt(self) -> None:
        self._fault.interrupted.set()

    def rearm(self) -> None:
        self._fault.interrupted.clear()


class FaultyBound:
    def __init__(self, bound: Any, rows: Any, fault: Fault) -> None:
        self._bound, self._rows, self._fault = bound, rows, fault

    def prepare(self, inputs: Any) -> None:
        self._bound.prepare(inputs)

    def step(self, inputs: Any) -> Any:
        kind = self._fault.draw()
        if kind is None:
            return self._bound.step(inputs)
        for keys_and_values in self._rows.values():
            for array in keys_and_values:
                for row, positions in enumerate(inputs.position_ids):
                    array[row, :, positions] = RUBBISH
        if kind == "hang":
            assert self._fault.interrupted.wait(30)
        if kind in {"raise", "hang"}:
            raise RuntimeError(kind)
        logits = np.zeros((*inputs.logits_index.shape, VOCAB_SIZE), np.float32)
        if kind == "shape":
            return logits[..., :-1]
        logits[-1, 0, VOCAB_SIZE // 2] = np.nan
        return logits


def _replayed(served: Served, number: int, runtime: Runtime) -> list[int]:
    """The tokens of a request when only its calls that went well are made, on engines that never fail."""
    engine, heard = RuntimeEngine(runtime.engines, 1), []
    num_new = len(served.tokens[number])
    prompt = served.prompts[number]
    ticket = Ticket(number, 0.0, len(prompt), num_new, Contract(), (1.0,), None, 0, (0.0, 0.0))  # type: ignore[arg-type]
    engine.open(ticket, Answer(prompt, num_new, Sampling(), frozenset(), lambda token, _level: heard.append(token)))
    for _, kind, *args in (call for call in served.engine.calls if call[0] == number):
        if kind == "decode":
            level, steps = args
            for _ in range(steps):
                engine.decode([ticket], level, 1)
        else:
            level, first, num_tokens = args
            engine.extend(ticket, level, first, num_tokens)
            if not heard and first + num_tokens == len(prompt):
                ticket.level = level
                engine.begin(ticket)
    return heard


def test_a_thousand_faults_cost_no_token_and_no_request(runtime: Runtime) -> None:
    fault = Fault(0, rate=0.25)
    served = Served(runtime, Restless(1), engines=FaultyEngines(runtime.engines, fault), hang_s=0.02)
    rng, num_requests = np.random.default_rng(2), 0
    while fault.injected.total() < 1000:
        served.submit(rng, int(rng.integers(1, 40)))
        num_requests += 1
        served.run()
    assert min(fault.injected[kind] for kind in ("raise", "nan", "shape", "hang")) > 3
    assert [outcome for _, outcome in served.ended] == ["served"] * num_requests
    for ticket, _ in served.ended:
        heard = [token for token, _ in served.tokens[ticket.number]]
        assert len(heard) == ticket.max_new_tokens
        assert heard == _replayed(served, ticket.number, runtime)


def test_another_level_goes_on_within_one_step(runtime: Runtime) -> None:
    fault = Fault(0, rate=0.0)
    served = Served(runtime, FixedDepth(0), engines=FaultyEngines(runtime.engines, fault))
    ticket = served.submit(np.random.default_rng(0), 12)
    served.scheduler.step()
    served.scheduler.step()
    num_new = ticket.num_new
    kinds = iter(["raise"])
    fault.draw = lambda: next(kinds, None)  # type: ignore[method-assign]
    assert served.scheduler.step()
    assert ticket.num_new == num_new
    assert served.scheduler.step()
    assert (ticket.num_new, ticket.level) == (num_new + 3, 1)
    assert served.scheduler.breakers.state(0, served.now_ms) == "open"
    served.now_ms += 10_000
    assert served.scheduler.breakers.state(0, served.now_ms) == "half-open"
    probe = served.submit(np.random.default_rng(1), 4)
    served.run()
    assert served.scheduler.breakers.state(0, served.now_ms) == "closed"
    assert {level for _, level in served.tokens[probe.number]} == {0}


def test_when_all_levels_fail_for_good_requests_end_as_failed(runtime: Runtime) -> None:
    served = Served(runtime, FixedDepth(0), engines=FaultyEngines(runtime.engines, Fault(0, rate=1.0)), hang_s=0.02)
    rng = np.random.default_rng(0)
    for _ in range(3):
        served.submit(rng, 5)
    for _ in range(100_000):
        if not served.scheduler.is_busy:
            break
        served.scheduler.step()
        served.now_ms += 500.0
    assert [outcome for _, outcome in served.ended] == ["failed"] * 3
