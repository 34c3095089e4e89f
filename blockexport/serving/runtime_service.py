"""Serves requests of any thread on the engines of one bundle, in a thread of its own."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockexport.core.model import ModelSpec
from blockexport.errors import RequestError, ServiceClosedError
from blockexport.routing.costs import StepCosts
from blockexport.routing.ladder import Ladder
from blockexport.routing.lengths import LengthPredictor
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.step import StepPlan
from blockexport.routing.steps.registry import resolve_step_policy
from blockexport.routing.ticket import Ticket
from blockexport.runtime.prompt_batch import PromptBatch
from blockexport.runtime.prompts import check_room
from blockexport.runtime.runtime import Runtime
from blockexport.serving.answer import Answer
from blockexport.serving.endings import ending_of
from blockexport.serving.promises import Promises
from blockexport.serving.runtime_engine import RuntimeEngine
from blockexport.serving.scheduler import Scheduler
from blockexport.serving.service import Ending, GenerationRequest, Listener, Outcome, Result
from blockexport.serving.trace import RanStep, TraceFile

_log = logging.getLogger(__name__)
_FIRST_QUANTILE = 0.1


def now_ms() -> float:
    """The clock of a service: milliseconds, monotonic."""
    return time.perf_counter_ns() / 1e6


@dataclass(slots=True, eq=False)
class _Request:
    """A request of a caller, and what became of it."""

    request: GenerationRequest
    listener: Listener
    answer: Answer
    arrived_ms: float
    ticket: Ticket | None = None
    is_cancelled: bool = False
    wake: Callable[[Callable[[], None]], None] = field(default=lambda _call: None)
    on_cancel: Callable[["_Request"], None] = field(default=lambda _request: None)

    def cancel(self) -> None:
        """Give it up."""
        if not self.is_cancelled:
            self.is_cancelled = True
            self.wake(lambda: self.on_cancel(self))


class RuntimeService:
    """The scheduler and its engine, run by one thread until `close`.

    Requests, cancellations and calls are put into an inbox and taken out between two steps; a block of steps ends
    early for them.

    Args:
        runtime: the bundle, profiled on this host. The service is the only one to use it from now on.
        policy: name of a policy of `routing.steps.registry`.
        max_rows: most requests that share a step.
        max_waiting: most requests that wait.
        max_stall_ms: longest time that a piece of a prompt may hold up running answers; None for whole prompts, which
            models get whose image tokens see those behind them.
        alpha: share of requests that may take longer than the bound they are promised.
        hang_s: longest that one call of an engine may take.
        on_plan: told of each decision, in the service's thread.
        trace: file to which decisions go, and what came of them; closed with the service.

    Raises:
        ConfigError: no such policy.
        ProfileError: this host was not profiled.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        policy: str = "priced",
        max_rows: int = 4,
        max_waiting: int = 64,
        max_stall_ms: float | None = None,
        alpha: float = 0.05,
        hang_s: float = 30.0,
        on_plan: Callable[[StepPlan], None] = lambda _plan: None,
        trace: Path | None = None,
    ) -> None:
        self._runtime = runtime
        self.ladder = Ladder.of(runtime.levels)
        self.latency = OnlineLatency(
            StepCosts.of(runtime.profile.fit), len(self.ladder.depths), alpha, first_quantile=_FIRST_QUANTILE
        )
        lengths = LengthPredictor()
        self.promises = Promises(self.ladder, self.latency, lengths, alpha)
        self._inbox: deque[Callable[[], None]] = deque()
        self._news = threading.Condition()
        self._engine = RuntimeEngine(runtime.engines, max_rows, lambda: bool(self._inbox), hang_s=hang_s)
        self._on_plan = on_plan
        self._trace = None if trace is None else TraceFile(trace, self.ladder)
        vision = runtime.spec.vision
        self._scheduler = Scheduler(
            self._engine,
            resolve_step_policy(policy, self.ladder),
            self.ladder,
            self.latency,
            lengths,
            clock=now_ms,
            max_rows=max_rows,
            max_waiting=max_waiting,
            # What sees tokens behind it comes to an engine in one call.
            max_stall_ms=None if vision is not None and vision.mutual_tokens else max_stall_ms,
            on_end=self._ended,
            on_plan=self._planned,
            on_ran=self._ran,
        )
        self._requests: dict[int, _Request] = {}
        self._is_draining = self._is_closed = False
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self._runtime.spec

    def submit(self, request: GenerationRequest, listener: Listener, /) -> _Request:
        """Queue a request; its clock starts now.

        Raises:
            RequestError: the model or the ladder cannot serve it at any time.
            ServiceClosedError: nothing more is taken in.
        """
        arrived_ms = now_ms()
        if self._is_draining:
            msg = "the service is about to stop and takes nothing more in; ask another one"
            raise ServiceClosedError(msg)
        self.ladder.shallowest_for(request.contract)
        pictures = request.pictures or {}
        prompt = PromptBatch.of(
            self.spec,
            [list(request.tokens)],
            None,
            *(pictures.get(name) for name in ("images", "image_masks", "image_input_idx")),
        )
        check_room(int(prompt.lengths[0]), request.max_new_tokens, self.spec)
        names = self.ladder.names
        answer = Answer(
            prompt.tokens[0],
            request.max_new_tokens,
            request.sampling,
            request.stop_tokens,
            lambda token, level: listener.on_token(token, names[level]),
            prompt.pictures,
        )
        entry = _Request(request, listener, answer, arrived_ms, wake=self._post, on_cancel=self._cancel)
        self._post(lambda: self._admit(entry))
        return entry

    def run(self, call: Callable[[], Result], /) -> "Future[Result]":
        """Call something in the engine's thread, between two steps."""
        future: Future[Result] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except Exception as error:  # noqa: BLE001  (it is the caller's to handle)
                    future.set_exception(error)

        self._post(work)
        return future

    def state(self) -> Mapping[str, Any]:
        """A snapshot for people and dashboards; see `GenerationService`."""
        now, scheduler = now_ms(), self._scheduler
        running, waiting = list(scheduler.running), list(scheduler.waiting)
        return {
            "running": len(running),
            "waiting": len(waiting),
            "levels": [
                {
                    "name": name,
                    "depth": depth,
                    "breaker": scheduler.breakers.state(level, now),
                    "reason": scheduler.breakers.reason(level),
                    "running": sum(ticket.level == level for ticket in running),
                }
                for level, (name, depth) in enumerate(zip(self.ladder.names, self.ladder.depths, strict=True))
            ],
            "slowdown": self.latency.slowdown,
            "coverage": {
                "steps": self.latency.coverage.overall,
                "worst_minute": self.latency.coverage.worst_minute,
                "requests": self.promises.coverage.overall,
            },
            "kv_tokens": sum(ticket.num_tokens for ticket in running),
            "kv_capacity_tokens": self._engine.cache.capacity_tokens * self._engine.cache.num_rows,
        }

    def drain(self, timeout_s: float) -> bool:
        """Take nothing more in and let what runs end; whether it did in time."""
        self._is_draining = True
        self._post(lambda: None)
        return self._idle.wait(timeout_s)

    def close(self) -> None:
        """End everything and free the engine."""
        self._is_draining = True

        def stop() -> None:
            for entry in list(self._requests.values()):
                self._cancel(entry)
            self._is_closed = True

        self._post(stop)
        self._thread.join()
        self._engine.close()
        if self._trace is not None:
            self._trace.close()

    def _post(self, call: Callable[[], None]) -> None:
        with self._news:
            self._inbox.append(call)
            self._news.notify()

    def _serve(self) -> None:
        while not self._is_closed:
            while self._inbox:
                self._inbox.popleft()()
            try:
                has_worked = self._scheduler.step()
            except Exception:  # noqa: BLE001
                # A defect of ours must not leave callers waiting for ever: who is in flight hears of it.
                _log.exception("a step failed")
                self._give_up()
                has_worked = False
            if not has_worked:
                self._rest()

    def _rest(self) -> None:
        """Wait for news, or until a level may be probed."""
        if not self._scheduler.is_busy and self._is_draining:
            self._idle.set()
        with self._news:
            if not self._inbox and not self._is_closed:
                is_busy = self._scheduler.is_busy
                pause_ms = max(1.0, self._scheduler.breakers.next_probe_ms() - now_ms()) if is_busy else None
                self._news.wait(None if pause_ms is None else pause_ms / 1000)

    def _admit(self, entry: _Request) -> None:
        if entry.is_cancelled:
            self._tell(entry, "cancelled", "given up before it began")
            return
        request = entry.request
        admission = self._scheduler.submit(
            entry.answer.num_prompt, request.max_new_tokens, request.contract, arrived_ms=entry.arrived_ms
        )
        entry.ticket = admission.ticket
        if not admission.is_admitted:
            self._tell(entry, "shed", admission.reason, admission.retry_after_ms)
            return
        try:
            self._engine.open(admission.ticket, entry.answer)
        except RequestError as error:
            self._scheduler.cancel(admission.ticket)
            self._tell(entry, "failed", str(error))
            return
        self._requests[admission.ticket.number] = entry

    def _cancel(self, entry: _Request) -> None:
        if entry.ticket is not None and entry.ticket.number in self._requests:
            self._scheduler.cancel(entry.ticket)

    def _give_up(self) -> None:
        for entry in list(self._requests.values()):
            assert entry.ticket is not None
            self._scheduler.end(entry.ticket, "failed")

    def _planned(self, plan: StepPlan) -> None:
        self._on_plan(plan)
        if self._trace is not None:
            self._trace.decided(plan, len(self._scheduler.running), len(self._scheduler.waiting))
        ticket = plan.tickets[0]
        if plan.kind == "prefill" and not ticket.is_promised:
            ticket.is_promised = True
            entry = self._requests[ticket.number]
            promise = self.promises.make(plan, self._scheduler.running, now_ms())
            if self._trace is not None:
                self._trace.promised(ticket, promise)
            entry.listener.on_promise(promise)

    def _ran(self, step: RanStep) -> None:
        if self._trace is not None:
            self._trace.ran(step)

    def _ended(self, ticket: Ticket, outcome: Outcome) -> None:
        entry = self._requests.pop(ticket.number, None)
        if outcome == "cancelled":
            self.promises.forget(ticket)
        else:
            self.promises.keep(ticket, now_ms(), is_whole=outcome == "served")
        if entry is not None:
            # It had its turn too late, which is for want of room: later there may be some.
            retry_after_ms = self._scheduler.room_in_ms() if outcome == "shed" else None
            self._tell(entry, outcome, retry_after_ms=retry_after_ms)

    def _tell(self, entry: _Request, outcome: Outcome, reason: str = "", retry_after_ms: float | None = None) -> None:
        observed_ms = now_ms() - entry.arrived_ms
        ending: Ending = ending_of(
            entry.ticket,
            outcome,
            self.ladder,
            observed_ms,
            stopped=entry.answer.stopped,
            reason=reason,
            retry_after_ms=retry_after_ms,
        )
        if self._trace is not None:
            self._trace.ended(entry.ticket, ending)
        entry.listener.on_end(ending)


def serve_runtime(runtime: Runtime, **options: Any) -> RuntimeService:
    """A service on a bundle, its levels opened; `options` as `RuntimeService` has them."""
    runtime.warm_up()
    return RuntimeService(runtime, **options)
