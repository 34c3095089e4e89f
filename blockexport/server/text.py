"""Tokens to text as they come: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence
from typing import Any

# What decoding gives for bytes that are not yet a whole character.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
# A character has at most four bytes; this many tokens without the end of one are no text, and are shown as such.
_MAX_HELD_TOKENS = 16


class TextStream:
    """Text of tokens, piece by piece.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Tokens since the piece before the last: decoders write the first token of a text otherwise than later ones.
        self._window: list[int] = []
        self._num_shown = 0

    def push(self, token: int) -> str:
        """What one more token adds."""
        self._window.append(token)
        return self._advance(is_last=False)

    def flush(self) -> str:
        """What is left at the end, whole or not."""
        return self._advance(is_last=True)

    def _advance(self, *, is_last: bool) -> str:
        shown = self._tokenizer.decode(self._window[: self._num_shown])
        text = self._tokenizer.decode(self._window)
        num_held = len(self._window) - self._num_shown
        if text.endswith(_INCOMPLETE) and not is_last and num_held < _MAX_HELD_TOKENS:
            return ""
        self._window = self._window[self._num_shown :]
        self._num_shown = num_held
        return str(text[len(shown) :])


class StopStrings:
    """Ends a text at the first of some strings, which may come in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_stopped = False

    def push(self, piece: str) -> str:
        """What of a further piece is surely before any stop string."""
        if self.is_stopped or not self._stops:
            return "" if self.is_stopped else piece
        text = self._held + piece
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        num_held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """What was held back, at the end of a text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that may be the begin of a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
