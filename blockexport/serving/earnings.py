"""What a millisecond of engine time has brought in of late."""

_MEMORY = 128


class Earnings:
    """Worth delivered in time per millisecond of engine time, over about the last hundred answers."""

    def __init__(self) -> None:
        self._worth = self._busy_ms = 0.0

    def observe(self, worth: float, busy_ms: float) -> None:
        """Take in one answer that was in time."""
        self._worth += worth - self._worth / _MEMORY
        self._busy_ms += busy_ms - self._busy_ms / _MEMORY

    @property
    def per_ms(self) -> float:
        """Worth per millisecond; 0 before the first answer."""
        return self._worth / self._busy_ms if self._busy_ms > 0 else 0.0
