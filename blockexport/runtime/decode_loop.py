"""Prompt in, tokens out, one engine call a step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockexport.routing.decision import RoutingDecision
from blockexport.runtime.session import Session, Up


@dataclass(frozen=True, slots=True)
class Generation:
    """What a request got.

    Attributes:
        tokens: new tokens, without the stop token; one list for one prompt, a list of lists for a batch.
        level: the level that ran.
        observed_ms: from the call to the last token; a level that was not open yet (see `Runtime.warm_up`) is opened
            within it.
        ttft_ms: from the call to the first token.
        decision: why this level; None when the caller named it.
        switches: changes of level on the way, as (token index, level).
    """

    tokens: list[int] | list[list[int]]
    level: str
    observed_ms: float
    ttft_ms: float
    decision: RoutingDecision | None
    switches: tuple[tuple[int, str], ...] = ()


class DecodeLoop:
    """Generates until every row has met a stop token or has as many as asked for.

    Args:
        session: just started.
        stops: ids that end a row.
        switches: by index of the new token, the level that gives it and later ones.
        up: what is done at a level whose blocks lack tokens; see `Session.switch`.
        clock: monotonic nanoseconds.
        on_token: called as (row, token) as soon as a token is there.
    """

    def __init__(
        self,
        session: Session,
        *,
        stops: frozenset[int],
        switches: Mapping[int, str],
        up: Up,
        clock: Callable[[], int],
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        self._session = session
        self._stops = stops
        self._switches = switches
        self._up = up
        self._clock = clock
        self._on_token = on_token
        self.first_token_at = 0

    def run(self, max_new_tokens: int) -> list[list[int]]:
        """New tokens of each row, without the stop token."""
        session = self._session
        rows: list[list[int]] = [[] for _ in session.lengths]
        running = list(range(len(rows)))
        session.prepare(*self._switches.values())
        for index in range(max_new_tokens):
            if index in self._switches:
                session.switch(self._switches[index], up=self._up)
            chosen = session.step()
            self.first_token_at = self.first_token_at or self._clock()
            running = self._collect(chosen, rows, running)
            if not running:
                break
        return rows

    def _collect(self, chosen: NDArray[np.int64], rows: list[list[int]], running: list[int]) -> list[int]:
        """Hand tokens out; the rows that go on."""
        tokens = chosen.tolist()
        ended = [row for row in running if tokens[row] in self._stops]
        going_on = [row for row in running if row not in ended] if ended else running
        for row in going_on:
            rows[row].append(tokens[row])
            if self._on_token is not None:
                self._on_token(row, tokens[row])
        return going_on
