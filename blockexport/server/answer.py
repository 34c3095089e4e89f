"""One answer while it comes: its text, its end, and what is told of it."""

from collections.abc import Callable, Sequence
from typing import Any

from blockexport.server.mailbox import Event, Token
from blockexport.server.text import StopStrings, TextStream
from blockexport.serving.service import Ending, GenerationRequest, Promise


class Answer:
    """What a request has got so far.

    Args:
        request: what was asked.
        tokenizer: makes text of tokens; None for a bundle without.
        stop: strings that end the text.
        on_stop: called when one of them came: no more tokens are wanted.
        on_gap: told of the seconds between two tokens.
    """

    def __init__(
        self,
        request: GenerationRequest,
        tokenizer: Any,
        stop: Sequence[str],
        on_stop: Callable[[], None],
        on_gap: Callable[[float], None],
    ) -> None:
        self.request = request
        self.promise: Promise | None = None
        self.ending: Ending | None = None
        self.switches: list[tuple[int, str]] = []
        self.num_tokens = 0
        self._text = None if tokenizer is None else TextStream(tokenizer)
        self._stops = StopStrings(stop)
        self._on_stop = on_stop
        self._on_gap = on_gap
        self._fresh: list[str] = []
        self._level: str | None = None
        self._last_at_s: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether it was promised or has ended."""
        return self.promise is not None or self.ending is not None

    @property
    def finish_reason(self) -> str | None:
        """`stop` or `length`, in the words of the API; None before the end."""
        if self.ending is None:
            return None
        return "stop" if self._stops.is_stopped else self.ending.finish_reason or "length"

    @property
    def is_answered(self) -> bool:
        """Whether it ended with what its caller takes for an answer."""
        ending = self.ending
        return ending is not None and (ending.outcome in {"served", "truncated"} or self._stops.is_stopped)

    def hear(self, event: Event) -> None:
        """Take in what the service says."""
        if isinstance(event, Token):
            self._hear_token(event)
        elif isinstance(event, Promise):
            self.promise = event
        else:
            self.ending = event
            if self._text is not None and not self._stops.is_stopped:
                self._show(self._text.flush())
                self._fresh.append(self._stops.flush())

    def take_text(self) -> str:
        """The text that came since the last call."""
        text = "".join(self._fresh)
        self._fresh.clear()
        return text

    def told(self) -> dict[str, Any]:
        """What a caller learns of the service it got: the field `blockexport` of an answer."""
        promise, ending = self.promise, self.ending
        told: dict[str, Any] = {"level": None if promise is None else promise.level}
        if promise is not None:
            told |= {
                "predicted_ms": promise.predicted_ms,
                "bound_ms": promise.bound_ms,
                "reason": promise.reason,
                "alternatives": [dict(alternative) for alternative in promise.alternatives],
            }
        told["switches"] = [list(switch) for switch in self.switches]
        if ending is not None:
            told |= {
                "outcome": "served" if self._stops.is_stopped else ending.outcome,
                "ending": "a stop string came" if self._stops.is_stopped else ending.reason,
                "observed_ms": ending.observed_ms,
                "ttft_ms": ending.ttft_ms,
                "tokens_at": dict(ending.tokens_at),
                "is_in_time": ending.is_in_time,
            }
        return told

    def _hear_token(self, event: Token) -> None:
        if self._stops.is_stopped:
            return
        if self._last_at_s is not None:
            self._on_gap(event.at_s - self._last_at_s)
        if self._level not in {None, event.level}:
            self.switches.append((self.num_tokens, event.level))
        self._level, self._last_at_s = event.level, event.at_s
        self.num_tokens += 1
        if self._text is not None:
            self._show(self._text.push(event.token))

    def _show(self, piece: str) -> None:
        self._fresh.append(self._stops.push(piece))
        if self._stops.is_stopped:
            self._on_stop()
