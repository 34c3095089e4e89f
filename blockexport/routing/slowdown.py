"""How much slower than its profile a host runs right now."""

import math

_JUMP_SIGMAS = 4.0
_JUMP_BLOCKS = 3.0
_LONG_BLOCK_MS = 500.0  # a block that lasts as long is as much evidence as one more
_DRIFT_VARIANCE = 1e-5  # of the logarithm, per observation: what creeps in between two jumps
_FIRST_VARIANCE = 0.04
_FIRST_NOISE = 0.01
_NOISE_SHARE = 0.05  # weight of the newest observation in the estimate of the noise


class SlowdownTracker:
    """A scalar Kalman filter on the logarithm of observed / predicted time.

    One factor for the whole host, as in ALERT (arXiv 1911.00119). A filter sure of itself follows a step slowly, so
    three surprises of four standard deviations in a row, all to the same side, start it anew; fewer, if they were long,
    for nobody waits for three long prompts to see that they take longer.

    Attributes:
        log_factor: logarithm of the slowdown; 0 as profiled.
        factor: observed time over predicted time.
    """

    __slots__ = ("_noise", "_surprises", "_variance", "factor", "log_factor")

    def __init__(self) -> None:
        self.log_factor, self.factor = 0.0, 1.0
        self._variance = _FIRST_VARIANCE
        self._noise = _FIRST_NOISE
        self._surprises = 0.0

    def observe(self, log_ratio: float, lasted_ms: float = 0.0) -> None:
        """Take in the logarithm of observed / predicted time of one block of steps, and how long it lasted."""
        innovation = log_ratio - self.log_factor
        spread = math.sqrt(self._variance + self._noise)
        if abs(innovation) > _JUMP_SIGMAS * spread:
            side = math.copysign(1.0 + lasted_ms / _LONG_BLOCK_MS, innovation)
            self._surprises = self._surprises + side if self._surprises * side > 0 else side
            if abs(self._surprises) < _JUMP_BLOCKS:
                return
            self._variance = _FIRST_VARIANCE
        self._surprises = 0.0
        self._variance += _DRIFT_VARIANCE
        gain = self._variance / (self._variance + self._noise)
        self.log_factor += gain * innovation
        self.factor = math.exp(self.log_factor)
        self._variance *= 1 - gain
        capped = min(abs(innovation), _JUMP_SIGMAS * spread)
        self._noise += _NOISE_SHARE * (max(capped * capped, 1e-6) - self._noise)
