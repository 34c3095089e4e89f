"""One batch being continued, token by token, at a level that may change between any two of them."""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from blockexport.core.engine import StepInputs
from blockexport.core.pictures import ImageTokens, chunk_end
from blockexport.core.positions import PositionShifts
from blockexport.errors import RequestError
from blockexport.runtime.engines import Engines
from blockexport.runtime.sampling import Sampling, choose
from blockexport.runtime.workspace import Workspace

Up = Literal["reprefill", "masked"]
UPS: tuple[Up, ...] = ("reprefill", "masked")


class Session:
    """Continues the prompts of one batch; rows may differ in length.

    Keys and values are kept for each original block, so a change of level moves no memory. To a level that has all it
    needs, which is every shallower one, the change is free and exact. A level whose blocks lack tokens first runs
    those (`reprefill`: exact, as if it had run them at the time), or passes over them (`masked`: free, approximate;
    a sliding window then counts the tokens that a block has seen).

    Args:
        engines: the levels.
        workspace: for this batch; the session's own until it is closed.
        level: the level to begin with.
        tokens: prompts (batch, tokens), padded on the right.
        lengths: real tokens of each row, (batch,).
        image_tokens: what joins the prompts, for a model that reads pictures.
        shifts: what these do to positions, for a model that counts rows and columns.
        sampling: how `step` draws tokens.
        chunk_tokens: run at most this many prompt tokens at a time, row after row; None for whole prompts at once.
        release: called with the workspace when the session is closed.

    Attributes:
        cache: keys and values by block; to look at, not to change.
        level: the level that runs next.
        switches: changes of level so far, as (index of the new token, level).
    """

    def __init__(
        self,
        engines: Engines,
        workspace: Workspace,
        level: str,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],
        *,
        image_tokens: ImageTokens | None = None,
        shifts: PositionShifts | None = None,
        sampling: Sampling | None = None,
        chunk_tokens: int | None = None,
        release: Callable[[Workspace], None] | None = None,
    ) -> None:
        if chunk_tokens is not None and chunk_tokens < 1:
            msg = f"chunk_tokens is {chunk_tokens}; give at least 1, or None for whole prompts"
            raise RequestError(msg)
        self._engines = engines
        self._workspace = workspace
        self.cache = workspace.cache
        self.cache.clear()
        self._sampling = sampling or Sampling()
        self._rng = np.random.default_rng(self._sampling.seed)
        self._chunk_tokens = chunk_tokens
        self._release = release
        self._is_closed = False
        self._image_tokens = image_tokens
        self._shifts = shifts
        self._start(tokens, lengths)
        self.switches: tuple[tuple[int, str], ...] = ()
        self.prepare(level)
        self._enter(level)

    def _start(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Set the history: every token so far, the last of each row not run yet."""
        self._prompt = tokens
        self._prompt_lengths = lengths
        self._new: list[NDArray[np.integer[Any]]] = []
        self._longest = int(lengths.max())
        # Longer than this, and something has to be done before the next run.
        self._room_tokens = 0
        self._logits: NDArray[np.float32] | None = None
        decode = self._workspace.decode
        # One-dimensional views, for arrays of (batch, 1) cost more to index than they hold.
        self._last_tokens, self._positions = decode.input_ids[:, 0], decode.position_ids[:, 0]
        self._positions[:] = lengths - 1
        self._last_tokens[:] = tokens[np.arange(len(tokens)), self._positions]
        decode.total_tokens[...] = self._longest
        if decode.position_shifts is not None:
            decode.position_shifts[...] = 0 if self._shifts is None else self._shifts.behind_tokens(1)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row so far, prompt included, (batch,)."""
        return self._prompt_lengths + len(self._new)

    def prepare(self, *levels: str) -> None:
        """Open levels and tie them to the cache, so that a switch to them costs nothing.

        Raises:
            BundleError: this host cannot open a level's engine.
            RequestError: there is no such level, or the session is closed.
        """
        self._check_open()
        for level in levels:
            self._engines.rung(level)
            self._workspace.decoding(level)

    def switch(self, level: str, *, up: Up = "reprefill") -> None:
        """Run another level from the next token on.

        Args:
            level: its name.
            up: if its blocks lack tokens: `reprefill` runs them with the next token, `masked` passes over them.

        Raises:
            BundleError: this host cannot open the level's engine.
            RequestError: there is no such level, or no such `up`.
        """
        if up not in UPS:
            msg = f"up is {up!r}; choose from {', '.join(UPS)}"
            raise RequestError(msg)
        self.prepare(level)
        if level != self.level:
            self.switches = (*self.switches, (len(self._new), level))
        self._enter(level, accept_holes=up == "masked")

    def _enter(self, level: str, *, accept_holes: bool = False) -> None:
        self.level = level
        self._rung = self._engines.rung(level)
        self._bound = self._workspace.decoding(level)
        is_ready = self.cache.enter(self._rung)
        if not is_ready and accept_holes:
            self.cache.accept_holes(self._rung)
            is_ready = True
        # Before the prompt, and after a failure, all blocks lack the same tokens.
        num_run = self._positions if self._logits is None else self.lengths
        self._is_behind = not (is_ready and (self.cache.num_tokens == num_run).all())
        # A decode step has no place for what joins a prompt of a single token.
        self._is_behind |= self._image_tokens is not None and not (self._new or num_run.any())

    def run(self) -> NDArray[np.float32]:
        """Logits (batch, vocab) behind the last token of each row; overwritten by the next run.

        Raises:
            RequestError: the context or the memory ends here; or the session is closed.
        """
        if self._logits is None:
            if self._longest > self._room_tokens:
                self._make_room()
            self._logits = self._catch_up() if self._is_behind else self._decode()
        return self._logits

    def step(self) -> NDArray[np.int64]:
        """Choose the next token of each row, (batch,), and append it.

        Raises:
            RequestError: the context or the memory ends here; or the session is closed.
        """
        chosen = choose(self.run(), self._sampling, self._rng)
        self._append(chosen)
        return chosen

    def append(self, tokens: NDArray[np.integer[Any]] | Sequence[int]) -> None:
        """Continue each row with a given token, (batch,), instead of a chosen one.

        Raises:
            RequestError: a number of tokens other than the batch, or one outside the vocabulary; or as `run`.
        """
        given, vocab_size = np.array(tokens), self._engines.spec.vocab_size
        is_one_each = given.dtype.kind in "iu" and given.shape == self._prompt_lengths.shape
        if not is_one_each or not ((given >= 0) & (given < vocab_size)).all():
            msg = f"tokens are {given.tolist()}; give one below {vocab_size} for each of {len(self._prompt)} rows"
            raise RequestError(msg)
        self.run()
        self._append(given)

    def _append(self, tokens: NDArray[np.integer[Any]]) -> None:
        self._new.append(tokens)
        self._longest += 1
        self._positions += 1
        self._last_tokens[:] = tokens
        self._workspace.decode.total_tokens[...] = self._longest
        self._logits = None

    def _make_room(self) -> None:
        self._check_open()
        context = self._engines.spec.context_tokens
        if self._longest > context > 0:
            msg = f"the context of {context} tokens is full; start again with a shorter prompt"
            raise RequestError(msg)
        self._workspace.reserve(self._longest)
        self._bound = self._workspace.decoding(self.level)
        # Memory never holds more than the context.
        self._room_tokens = self.cache.capacity_tokens

    def _check_open(self) -> None:
        if self._is_closed:
            msg = "the session is closed; start another"
            raise RequestError(msg)

    def _decode(self) -> NDArray[np.float32]:
        """Run the last token of each row behind all others."""
        self.cache.extend(self._rung, 1)
        try:
            return self._bound.step(self._workspace.decode)[:, 0]
        except BaseException:
            self.cache.extend(self._rung, -1)
            raise

    def _catch_up(self) -> NDArray[np.float32]:
        """Run whatever the level's blocks lack, last tokens included."""
        # From here until it succeeded, the tokens behind the hole count as gone, so that a failure leaves no hole.
        first = self.cache.rewind(self._rung)
        lengths, history = self.lengths, self._history()
        if first.any() or self._chunk_tokens is not None:
            # ONNX Runtime takes several tokens behind cached ones for one row only.
            spans = enumerate(zip(first.tolist(), lengths.tolist(), strict=True))
            logits = np.stack([self._run_row(row, history[row : row + 1], *span) for row, span in spans])
        else:
            step = StepInputs.prompt(history, lengths, image_tokens=self._image_tokens, shifts=self._shifts)
            logits = self._workspace.prompting(self.level).step(step)[:, 0]
        self.cache.extend(self._rung, lengths - first)
        self._is_behind = False
        return logits

    def _history(self) -> NDArray[np.int64]:
        """All tokens, (batch, longest), padded on the right with what has to be a token."""
        history = np.pad(self._prompt, ((0, 0), (0, len(self._new))))
        for index, tokens in enumerate(self._new):
            history[np.arange(len(tokens)), self._prompt_lengths + index] = tokens
        return history

    def _run_row(self, row: int, tokens: NDArray[np.int64], first: int, length: int) -> NDArray[np.float32]:
        """Run tokens (1, longest) of one row from `first` on; logits (vocab,) behind the last."""
        bound = self._workspace.prompting(self.level, row)
        logits = np.empty(0, np.float32)
        for begin, end in self._chunks(tokens[0, :length], first):
            joining = None if self._image_tokens is None else self._image_tokens.within(row, begin, end)
            shifts = None if self._shifts is None else self._shifts.columns(begin, end, row)
            step = StepInputs.following(tokens[:, begin:end], np.array([begin]), joining, shifts)
            logits = bound.step(step)[0, 0]
        return logits

    def _chunks(self, tokens: NDArray[np.int64], first: int) -> Iterator[tuple[int, int]]:
        """Where to part the tokens (length,) of a row from `first` on."""
        vision, length = self._engines.spec.vision, len(tokens)
        while first < length:
            end = min(first + (self._chunk_tokens or length), length)
            if vision is not None:
                end = chunk_end(tokens, end, vision.mutual_tokens)
            yield first, end
            first = end

    def close(self) -> None:
        """Give the memory back for the next session; nothing can be run any more."""
        if not self._is_closed:
            self._is_closed = True
            # The next call of whatever kind finds out.
            self._room_tokens, self._logits = 0, None
            if self._release is not None:
                self._release(self._workspace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
