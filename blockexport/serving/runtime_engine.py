"""Runs the scheduler's steps on the engines of a bundle."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from blockexport.core.engine import BoundDecoder, StepInputs
from blockexport.errors import EngineFaultError
from blockexport.routing.ticket import Ticket
from blockexport.runtime.engines import Engines
from blockexport.runtime.runtime import KV_STEP_TOKENS
from blockexport.serving.answer import Answer
from blockexport.serving.rows import CacheRows
from blockexport.serving.watchdog import Watchdog


class RuntimeEngine:
    """The engines of one bundle, and the cache of all requests.

    Tokens of every row lie at their own position in every block that has them, so what a shallower level needs is in
    place, and what a deeper one lacks is run again before it (`extend`): both exact.

    Whatever an engine gives is looked at before it counts. An engine that raises, hangs, or gives what is no
    probability leaves the tokens and positions of its requests as they were; what it wrote lies behind them and is
    overwritten by the next step.

    Args:
        engines: the levels.
        max_rows: most requests that run at a time.
        has_news: whether a request has arrived, so that a block of steps ends early.
        hang_s: longest that one call of an engine may take.
        step_tokens: each row holds so many tokens at first, and grows by as many at a time.
    """

    def __init__(
        self,
        engines: Engines,
        max_rows: int,
        has_news: Callable[[], bool] = lambda: False,
        *,
        hang_s: float = 30.0,
        step_tokens: int = KV_STEP_TOKENS,
    ) -> None:
        self._engines, self._has_news = engines, has_news
        self._watchdog = Watchdog(hang_s)
        self.cache = CacheRows(engines, max_rows, step_tokens)
        self.answers: dict[int, Answer] = {}
        self._by_row: dict[int, tuple[Ticket, Answer]] = {}

    def open(self, ticket: Ticket, answer: Answer) -> None:
        """Make a request known, and room for it.

        Raises:
            RequestError: there is not enough memory.
        """
        self.cache.reserve(answer.most_tokens)
        self.answers[ticket.number] = answer

    def close(self) -> None:
        """Stop watching; nothing can be run any more."""
        self._watchdog.close()

    def extend(self, ticket: Ticket, level: int, first: int, num_tokens: int, /) -> None:
        """Run tokens `first` up to `first + num_tokens` of a request at a level.

        Raises:
            EngineFaultError: the engine failed.
        """
        answer = self.answers[ticket.number]
        row = self._row_of(ticket, answer)
        self._read_pictures(answer, level)
        end = first + num_tokens
        joining = None if answer.image_tokens is None else answer.image_tokens.within(0, first, end)
        shifts = None if answer.shifts is None else answer.shifts.columns(first, end)
        tokens = np.array([answer.tokens[first:end]], np.int64)
        inputs = StepInputs.following(tokens, np.array([first]), joining, shifts)
        logits, _ = self._run(level, lambda: self.cache.prompting(level, row).step(inputs), (1, 1))
        answer.logits = logits[0].copy()

    def begin(self, ticket: Ticket, /) -> bool:
        """Hand out the first token of a prompt; whether the answer ends with it."""
        answer = self.answers[ticket.number]
        assert answer.logits is not None
        return answer.take(answer.logits, ticket.level)

    def decode(self, tickets: Sequence[Ticket], level: int, num_steps: int, /) -> tuple[int, Sequence[Ticket]]:
        """Hand out a token of each request a step, until one ends, a request has arrived, or the steps are over.

        Raises:
            EngineFaultError: the engine failed; `steps_taken` were handed out before.
        """
        first = self._neighbours(tickets)
        rows = [self._by_row[row] for row in range(first, first + len(tickets))]
        answers = [answer for _, answer in rows]
        inputs, bound = self._prepared(level, first, answers)
        for taken in range(1, num_steps + 1):
            try:
                logits, likeliest = self._run(level, lambda: bound.step(inputs), (len(answers), 1))
            except EngineFaultError as error:
                error.steps_taken = taken - 1
                raise
            ended = _hand_out(rows, logits, likeliest, level)
            if ended or taken == num_steps or self._has_news():
                return taken, ended
            _set(inputs, answers)
        raise AssertionError  # num_steps is at least one

    def release(self, ticket: Ticket, /) -> None:
        """Free the row of a request."""
        answer = self.answers.pop(ticket.number, None)
        if answer is not None and answer.row is not None:
            del self._by_row[answer.row]
            answer.row = None

    def _row_of(self, ticket: Ticket, answer: Answer) -> int:
        if answer.row is None:
            answer.row = next(row for row in range(self.cache.num_rows) if row not in self._by_row)
            self._by_row[answer.row] = (ticket, answer)
        return answer.row

    def _read_pictures(self, answer: Answer, level: int) -> None:
        if answer.pictures is not None and answer.image_tokens is None:
            try:
                answer.image_tokens = self._engines.encode(answer.pictures)
            except Exception as error:
                raise EngineFaultError(level, f"its pictures could not be read: {error}") from error

    def _run(
        self, level: int, step: Callable[[], NDArray[np.float32]], shape: tuple[int, int]
    ) -> tuple[NDArray[np.float32], list[int]]:
        """One call of an engine; logits (rows, vocab) that can be drawn from for sure, and the likeliest tokens."""
        name = self._engines.names[level]
        try:
            self._watchdog.begin(self._engines.decoder(name))
            logits = step()
        except Exception as error:
            # Engines raise whatever they like, and so do the drivers below them.
            raise EngineFaultError(level, f"{name}: {' '.join(str(error).split())}") from error
        finally:
            self._watchdog.end()
        if logits.shape != (*shape, self._engines.spec.vocab_size):
            raise EngineFaultError(level, f"{name} gave logits {logits.shape}, not {(*shape, '...')}")
        logits = logits[:, 0]
        likeliest: list[int] = logits.argmax(-1).tolist()
        # The greatest of a row is the first NaN if there is one: one number tells for all of them.
        if not all(math.isfinite(row[token]) for row, token in zip(logits, likeliest, strict=True)):
            raise EngineFaultError(level, f"{name} gave logits that are no numbers")
        return logits, likeliest

    def _neighbours(self, tickets: Sequence[Ticket]) -> int:
        """Bring the rows of requests side by side; the first of them."""
        wanted = {self.answers[ticket.number].row for ticket in tickets}
        rows = sorted(row for row in wanted if row is not None)
        if rows[-1] - rows[0] + 1 == len(rows):
            return rows[0]
        targets = [row for row in range(len(rows)) if row not in wanted]
        for source, target in zip((row for row in rows if row >= len(rows)), targets, strict=True):
            self._exchange(source, target)
        return 0

    def _exchange(self, one: int, other: int) -> None:
        pairs = {other: self._by_row.pop(one, None), one: self._by_row.pop(other, None)}
        longest = max(len(pair[1].tokens) for pair in pairs.values() if pair is not None)
        self.cache.exchange(one, other, min(longest, self.cache.capacity_tokens))
        for row, pair in pairs.items():
            if pair is not None:
                self._by_row[row] = pair
                pair[1].row = row

    def _prepared(self, level: int, first: int, answers: Sequence[Answer]) -> tuple[StepInputs, BoundDecoder]:
        try:
            inputs, bound = self.cache.decoding(level, first, first + len(answers))
        except Exception as error:
            raise EngineFaultError(level, f"{self._engines.names[level]} cannot be opened: {error}") from error
        _set(inputs, answers)
        return inputs, bound


def _hand_out(
    rows: Sequence[tuple[Ticket, Answer]], logits: NDArray[np.float32], likeliest: Sequence[int], level: int
) -> list[Ticket]:
    """Give each request its token; those that end with it."""
    ended = []
    for index, (ticket, answer) in enumerate(rows):
        is_greedy = answer.sampling.temperature == 0
        is_over = answer.accept(likeliest[index], level) if is_greedy else answer.take(logits[index], level)
        if is_over:
            ended.append(ticket)
    return ended


def _set(inputs: StepInputs, answers: Sequence[Answer]) -> None:
    """Point a step at the last token of each row, which was not run yet."""
    longest = 0
    # Few rows: one by one they take less time than as arrays.
    for row, answer in enumerate(answers):
        position = len(answer.tokens) - 1
        inputs.input_ids[row, 0] = answer.tokens[-1]
        inputs.position_ids[row, 0] = inputs.last_position[row] = position
        longest = max(longest, position + 1)
    inputs.total_tokens[...] = longest
    if inputs.position_shifts is not None:
        inputs.position_shifts[...] = [[0 if answer.shifts is None else answer.shifts.behind[0]] for answer in answers]
