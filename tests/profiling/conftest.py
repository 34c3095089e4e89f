"""A workload whose calls take made-up time on a made-up clock."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from blockexport.core.model import ModelKind


@dataclass
class FakeWorkload:
    """Each call moves the clock by what `cost_ms(phase, depth, batch, tokens)` says, times `slowdown()`."""

    levels: Sequence[tuple[str, int]] = (("d4", 4), ("d3", 3), ("d1", 1))
    kind: ModelKind = "decoder"
    context_tokens: int = 256
    now_ns: int = 0
    log: list[tuple[str, str, int, int]] = field(default_factory=list)
    extra_ms: Iterator[float] | None = None
    cost_ms: Callable[[str, int, int, int], float] = lambda phase, depth, batch, tokens: (
        1.0 + depth * (0.5 + 0.1 * batch + 0.01 * batch * tokens)
    )

    def clock(self) -> int:
        return self.now_ns

    def _call(self, phase: str, level: str, batch: int, tokens: int) -> Callable[[], None]:
        depth = dict(self.levels)[level]

        def call() -> None:
            self.log.append((phase, level, batch, tokens))
            extra = next(self.extra_ms) if self.extra_ms is not None else 0.0
            self.now_ns += round((self.cost_ms(phase, depth, batch, tokens) + extra) * 1e6)

        return call

    def prefill_call(self, level: str, batch: int, prompt_tokens: int) -> Callable[[], None]:
        return self._call("prefill", level, batch, prompt_tokens)

    def decode_call(self, level: str, batch: int, kv_tokens: int) -> Callable[[], None]:
        return self._call("decode", level, batch, kv_tokens)

    def forward_call(self, level: str, batch: int) -> Callable[[], None]:
        return self._call("forward", level, batch, 0)


@pytest.fixture
def make_workload() -> Callable[..., FakeWorkload]:
    return FakeWorkload
