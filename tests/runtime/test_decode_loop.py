"""The loop alone, on a session that gives scripted tokens."""

from typing import Any

import numpy as np
import pytest

from blockexport.runtime.decode_loop import DecodeLoop

STOP = 9


class Script:
    """Gives the next token of each row, and writes down what is asked of it."""

    def __init__(self, *rows: list[int]) -> None:
        self.lengths = np.ones(len(rows), np.int64)
        self.asked: list[Any] = []
        self._steps = list(zip(*rows, strict=True))

    def step(self) -> np.ndarray:
        self.asked.append("step")
        return np.array(self._steps[self.asked.count("step") - 1])

    def switch(self, level: str, *, up: str) -> None:
        self.asked.append((level, up))

    def prepare(self, *levels: str) -> None:
        self.asked.append(("prepare", *levels))


def run(script: Script, max_new_tokens: int, **options: Any) -> tuple[list[list[int]], DecodeLoop]:
    defaults = {"stops": frozenset([STOP]), "switches": {}, "up": "reprefill", "clock": lambda: 5, "on_token": None}
    loop = DecodeLoop(script, **defaults | options)
    return loop.run(max_new_tokens), loop


def test_as_many_tokens_as_asked_for_and_a_step_for_each() -> None:
    script = Script([1, 2, 3, 4])
    assert run(script, 3)[0] == [[1, 2, 3]]
    assert script.asked.count("step") == 3


def test_rows_stop_by_themselves_and_the_loop_with_the_last() -> None:
    script = Script([1, STOP, 5, 5, 5], [STOP, 6, 6, 6, 6], [2, 3, STOP, 7, 7])
    assert run(script, 5)[0] == [[1], [], [2, 3]]
    assert script.asked.count("step") == 3


def test_without_stops_every_token_counts() -> None:
    assert run(Script([STOP, 1]), 2, stops=frozenset())[0] == [[STOP, 1]]


def test_tokens_are_handed_out_as_they_come() -> None:
    heard: list[tuple[int, int]] = []
    script = Script([1, STOP, 5], [2, 3, STOP])
    run(script, 3, on_token=lambda row, token: heard.append((row, token)))
    assert heard == [(0, 1), (1, 2), (1, 3)]
    assert all(type(value) is int for pair in heard for value in pair)


def test_levels_are_prepared_before_and_switched_at_their_token() -> None:
    script = Script([1, 2, 3])
    run(script, 3, switches={2: "d2", 0: "d3"}, up="masked")
    assert script.asked == [("prepare", "d2", "d3"), ("d3", "masked"), "step", "step", ("d2", "masked"), "step"]


def test_a_switch_after_the_last_stop_never_comes() -> None:
    script = Script([1, STOP, 1])
    run(script, 3, switches={2: "d2"})
    assert ("d2", "reprefill") not in script.asked


def test_the_first_token_is_timed_once() -> None:
    ticks = iter(range(10, 20))
    assert run(Script([1, 2, 3]), 3, clock=lambda: next(ticks))[1].first_token_at == 10


def test_a_listener_that_raises_ends_the_loop() -> None:
    def refuse(_row: int, _token: int) -> None:
        raise KeyboardInterrupt

    script = Script([1, 2, 3])
    with pytest.raises(KeyboardInterrupt):
        run(script, 3, on_token=refuse)
    assert script.asked.count("step") == 1
