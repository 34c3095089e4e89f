"""What a server asks of the side that generates, and what it hears back."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from blockexport.core.model import ModelSpec
from blockexport.routing.contract import Contract
from blockexport.runtime.sampling import Sampling

Result = TypeVar("Result")
Outcome = Literal["served", "truncated", "late", "shed", "cancelled", "failed"]


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """One prompt to continue.

    Attributes:
        tokens: of the prompt.
        max_new_tokens: most tokens of the answer.
        contract: limits in time, floor in quality, priority, and what happens on a miss.
        sampling: how tokens are drawn.
        stop_tokens: ids that end the answer, not handed out themselves.
        pictures: `images`, `image_masks` and `image_input_idx` as `Runtime.generate` takes them; None without.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int
    contract: Contract = field(default_factory=Contract)
    sampling: Sampling = field(default_factory=Sampling)
    stop_tokens: frozenset[int] = frozenset()
    pictures: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Promise:
    """What a request is told when it is taken in.

    Attributes:
        level: where it is expected to be served.
        predicted_ms: expected time from entry to the last token, if the answer takes all its tokens.
        bound_ms: what that stays within with the probability asked of the router.
        reason: one line for people.
        alternatives: the other levels, each with `level`, `predicted_ms`, `bound_ms` and `feasible`.
    """

    level: str
    predicted_ms: float
    bound_ms: float
    reason: str
    alternatives: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended.

    Attributes:
        outcome: `served` to its own end; `truncated` or `late`, ended because its budget was missed; `shed`, never
            begun; `cancelled` by the caller; `failed`, no level could run it.
        finish_reason: why a served answer ended: a stop token, or as many tokens as were asked for.
        reason: one line for people.
        tokens_at: tokens handed out by each level, by name, deepest first.
        num_switches: changes of level between two tokens.
        ttft_ms: from entry to the first token; None without one.
        observed_ms: from entry to the end.
        is_in_time: whether every limit of the contract was kept.
        retry_after_ms: for a request refused for want of room: after which time to try again.
    """

    outcome: Outcome
    finish_reason: Literal["stop", "length"] | None
    reason: str
    tokens_at: Mapping[str, int]
    num_switches: int
    ttft_ms: float | None
    observed_ms: float
    is_in_time: bool
    retry_after_ms: float | None = None


class Listener(Protocol):
    """Hears of one request: a promise, tokens, an ending; an ending alone when it is refused.

    It is called in the thread that runs the engine, so it hands over and returns at once.
    """

    def on_promise(self, promise: Promise, /) -> None:
        """The request was taken in."""
        ...

    def on_token(self, token: int, level: str, /) -> None:
        """One more token, and the level that gave it."""
        ...

    def on_end(self, ending: Ending, /) -> None:
        """Nothing more will come."""
        ...


class Handle(Protocol):
    """A request on its way."""

    def cancel(self) -> None:
        """Give it up, from any thread; the listener hears an ending. Nothing happens if it has ended."""
        ...


class GenerationService(Protocol):
    """Takes requests from any thread."""

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        ...

    def submit(self, request: GenerationRequest, listener: Listener, /) -> Handle:
        """Queue a request; its clock starts now.

        Raises:
            RequestError: the model or the ladder cannot serve it at any time.
        """
        ...

    def state(self) -> Mapping[str, Any]:
        """A snapshot for people and dashboards.

        It holds `running`, `waiting`, `levels` (each with `name`, `depth`, `breaker`), `slowdown`, `coverage`,
        `kv_tokens` and `kv_capacity_tokens`.
        """
        ...

    def run(self, call: Callable[[], Result], /) -> "Future[Result]":
        """Call something in the thread that runs the engine, between two of its steps."""
        ...

    def drain(self, timeout_s: float) -> bool:
        """Take nothing more in and let what runs end; whether it did in time."""
        ...

    def close(self) -> None:
        """End everything and free the engine."""
        ...
