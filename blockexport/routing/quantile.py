"""A quantile that is followed as the observations come, and how well it has held."""

from collections import deque

_WINDOW_S = 60


class QuantileTracker:
    """Online quantile of scores, moved against its own mistakes.

    After each score, q moves by `rate * (missed - alpha)`. For scores within [-b, b], of any origin and drift, the
    share of scores above q then differs from alpha by at most (2b + rate) / (rate * T) after T scores (after Gibbs and
    Candès, arXiv 2106.00170): a promise about the long run, not about a burst. There is no floor below q, for the
    argument fails once it holds.

    Args:
        alpha: share of scores that may lie above the quantile.
        rate: how far one miss moves it.
        first: where it begins.

    Attributes:
        value: the quantile.
    """

    __slots__ = ("_alpha", "_rate", "value")

    def __init__(self, alpha: float, rate: float, first: float = 0.0) -> None:
        self._alpha, self._rate, self.value = alpha, rate, first

    def observe(self, score: float) -> bool:
        """Whether the score lay within the quantile as it was before; then move it."""
        is_within = score <= self.value
        self.value += self._rate * ((0.0 if is_within else 1.0) - self._alpha)
        return is_within


class Coverage:
    """Share of observations within their bound: overall, by level, and in the worst minute.

    The minute slides by seconds. One with fewer than `least` observations is not counted, nor is one that began before
    the first of them.
    """

    def __init__(self, least: int = 100) -> None:
        self._least = least
        self._by_level: dict[int, list[int]] = {}
        self._seconds: deque[tuple[int, list[int]]] = deque()
        self._window = [0, 0]
        self._worst: float | None = None
        self._first_second: int | None = None

    def observe(self, level: int, now_ms: float, *, is_within: bool) -> None:
        """Count one observation; times must not fall."""
        second = int(now_ms // 1000)
        self._first_second = second if self._first_second is None else self._first_second
        if not self._seconds or self._seconds[-1][0] != second:
            self._close(second)
        for counts in (self._by_level.setdefault(level, [0, 0]), self._seconds[-1][1], self._window):
            counts[0] += is_within
            counts[1] += 1

    def _close(self, second: int) -> None:
        if self._seconds:
            self._note_window()
        while self._seconds and self._seconds[0][0] <= second - _WINDOW_S:
            _, (within, total) = self._seconds.popleft()
            self._window[0] -= within
            self._window[1] -= total
        self._seconds.append((second, [0, 0]))

    def _note_window(self) -> None:
        within, total = self._window
        if self._first_second is None or self._seconds[-1][0] - self._first_second < _WINDOW_S - 1:
            return
        if total >= self._least:
            share = within / total
            self._worst = share if self._worst is None else min(self._worst, share)

    @property
    def overall(self) -> float | None:
        """Share within, of all; None before the first."""
        total = sum(count for _, count in self._by_level.values())
        return sum(within for within, _ in self._by_level.values()) / total if total else None

    @property
    def by_level(self) -> dict[int, float]:
        """Share within, by index of the level."""
        return {level: within / total for level, (within, total) in sorted(self._by_level.items())}

    @property
    def worst_minute(self) -> float | None:
        """The least share in any minute; None when no minute had enough observations."""
        self._note_window()
        return self._worst
