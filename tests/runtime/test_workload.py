"""What profiling times is what serving runs."""

from collections.abc import Callable

import numpy as np
import pytest

from blockexport.core.engine import StepInputs
from blockexport.runtime.workload import RuntimeWorkload

pytestmark = pytest.mark.slow


class Recorded:
    """An engine that writes down what it is given."""

    def __init__(self) -> None:
        self.steps: list[tuple[StepInputs, int]] = []

    def bind(self, rows: dict) -> "Recorded":
        self.capacity = rows[0][0].shape[2]
        return self

    def step(self, inputs: StepInputs) -> np.ndarray:
        self.steps.append((inputs, self.capacity))
        return np.zeros((1, 1, 1), np.float32)


@pytest.fixture
def recorded(ladder_of: Callable, monkeypatch: pytest.MonkeyPatch) -> tuple[RuntimeWorkload, Recorded]:
    engines, engine = ladder_of("llama").engines, Recorded()
    monkeypatch.setattr(engines, "decoder", lambda level: engine)
    return RuntimeWorkload(engines, engines.spec, [("d4", 4), ("d2", 2)]), engine


def test_it_says_what_there_is(recorded: tuple) -> None:
    workload = recorded[0]
    assert (workload.levels, workload.kind, workload.context_tokens) == ((("d4", 4), ("d2", 2)), "decoder", 64)


def test_a_prefill_is_a_prompt_from_nothing(recorded: tuple) -> None:
    workload, engine = recorded
    workload.prefill_call("d4", 3, 11)()
    inputs, capacity = engine.steps[0]
    assert (inputs.input_ids.shape, inputs.logits_index.tolist(), capacity) == ((3, 11), [[10]] * 3, 11)
    assert inputs.total_tokens == 11


def test_a_decode_step_is_one_token_behind_the_others_every_time(recorded: tuple) -> None:
    workload, engine = recorded
    call = workload.decode_call("d2", 2, 30)
    call()
    call()
    (inputs, capacity), (again, _) = engine.steps
    assert inputs is again
    assert (inputs.input_ids.shape, inputs.position_ids.tolist(), capacity) == ((2, 1), [[30], [30]], 31)
    assert inputs.total_tokens == 31


def test_calls_run_on_real_engines(ladder_of: Callable) -> None:
    engines = ladder_of("llama").engines
    workload = RuntimeWorkload(engines, engines.spec, [("d4", 4)])
    for call in (workload.prefill_call("d4", 2, 5), workload.decode_call("d4", 2, 5)):
        # A call that ran leaves nothing behind, so that it can be timed again.
        assert call() is None
        assert call() is None
    # The ladder is shared with other tests, which may have opened more of it.
    assert "d4" in engines.opened
