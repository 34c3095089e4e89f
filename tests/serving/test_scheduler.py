from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError, RequestError
from blockexport.routing.contract import Contract
from blockexport.routing.step import BatchState, StepPlan
from blockexport.routing.steps.fixed import FixedDepth
from blockexport.routing.turn import row_level, take_turn

Make = Callable[..., Any]

REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 300),
        st.integers(1, 40),
        st.none() | st.floats(0.5, 300),
        st.sampled_from(["finish", "truncate", "error"]),
        st.integers(-1, 1),
        st.integers(0, 3),
    ),
    max_size=12,
)


def _serve(make_host: Make, requests: Any, **options: Any) -> Any:
    """Requests come a few steps apart."""
    host = make_host(max_waiting=4, slowdown=lambda now: 1.7 if now > 40 else 1.0, **options)
    for prompt, length, e2e_ms, on_miss, priority, steps in requests:
        host.submit(prompt, length, e2e_ms, longest=64, on_miss=on_miss, priority=priority)
        assert len(host.scheduler.waiting) <= 4
        for _ in range(steps):
            host.scheduler.step()
    host.run()
    return host


@given(requests=REQUESTS, max_stall_ms=st.none() | st.floats(0.1, 5))
def test_every_request_ends_once_with_all_its_tokens_or_for_a_reason(
    make_host: Make, requests: Any, max_stall_ms: float | None
) -> None:
    host = _serve(make_host, requests, max_stall_ms=max_stall_ms)
    assert Counter(ticket.number for ticket, _ in host.ended) == Counter(range(len(requests)))
    for ticket, outcome in host.ended:
        length = requests[ticket.number][1]
        assert ticket.num_new == length if outcome == "served" else ticket.num_new < length
        assert sum(ticket.tokens_at) == ticket.num_new
        assert outcome in {"served", "shed", {"truncate": "truncated", "error": "late"}.get(ticket.contract.on_miss)}
    released = Counter(call[1] for call in host.engine.calls if call[0] == "release")
    assert set(released.values()) <= {1}
    assert released.keys() >= {call[1] for call in host.engine.calls if call[0] == "extend"}


@given(requests=REQUESTS)
def test_the_same_requests_get_the_same_decisions(make_host: Make, requests: Any) -> None:
    one, two = (_serve(make_host, requests) for _ in range(2))
    ladder = one.scheduler._ladder
    assert [plan.to_json(ladder) for plan in one.plans] == [plan.to_json(ladder) for plan in two.plans]
    assert one.engine.calls == two.engine.calls


class Zigzag(FixedDepth):
    """Goes up and down with every decision, whatever has to be run again for it."""

    def decide(self, state: BatchState, /) -> StepPlan:
        level = 2 * (state.running[0].num_switches % 2) if state.running else 0
        levels = [row_level(row, 2 - level, max_missing=1000) for row in state.running]
        return take_turn(state, levels, lambda _ticket: 0, "", careful=False)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), block_steps=st.integers(1, 8))
def test_no_level_runs_over_tokens_that_it_lacks(make_host: Make, lengths: list[int], block_steps: int) -> None:
    host = make_host(Zigzag(0), block_steps=block_steps)
    for length in lengths:
        host.submit(length=length)
    # The engine of these tests checks each call against what the caches hold.
    host.run()
    assert [outcome for _, outcome in host.ended] == ["served"] * len(lengths)


def test_to_go_up_the_missing_tokens_are_run_again(make_host: Make) -> None:
    host = make_host(Zigzag(0), block_steps=3)
    host.submit(prompt=10, length=8)
    host.run()
    # The first token comes from the prompt; three at level 2 leave a hole of three behind it.
    assert host.engine.calls[:4] == [
        ("extend", 0, 0, 0, 10),
        ("decode", (0,), 2),
        ("extend", 0, 0, 10, 3),
        ("decode", (0,), 0),
    ]


def test_a_full_queue_refuses_and_says_when_to_come_back(make_host: Make) -> None:
    host = make_host(max_waiting=2, max_rows=1)
    host.submit(length=30)
    host.scheduler.step()
    host.submit()
    host.submit()
    refused = host.submit()
    assert not refused.is_admitted
    # The answer that runs has 29 steps of 0.05 ms a block to go, at four blocks.
    assert refused.retry_after_ms == pytest.approx(29 * 4 * 0.05, rel=0.01)
    assert len(host.scheduler.waiting) == 2
    urgent = host.submit(priority=1)
    assert urgent.is_admitted
    assert host.scheduler.waiting[0] is urgent.ticket
    assert [outcome for _, outcome in host.ended] == ["shed", "shed"]


def test_what_no_level_can_do_is_refused_at_once(make_host: Make) -> None:
    host = make_host()
    refused = host.submit(prompt=100, e2e_ms=3.9)
    assert (refused.is_admitted, refused.retry_after_ms) == (False, None)
    assert "even with the host to itself" in refused.reason
    assert host.submit(prompt=100, e2e_ms=10.0).is_admitted
    with pytest.raises(RequestError, match="was not judged"):
        host.submit(task="unknown")


def test_what_expired_while_it_waited_costs_nothing(make_host: Make) -> None:
    host = make_host(FixedDepth(0), max_rows=1)
    host.submit(prompt=500, length=2)
    host.scheduler.step()
    late = host.submit(prompt=10, length=2, e2e_ms=2.5).ticket
    host.clock.now_ms += 5.0
    host.run()
    assert (late, "shed") in host.ended
    assert not any(call[:2] == ("extend", late.number) for call in host.engine.calls)


@pytest.mark.parametrize(
    ("on_miss", "outcome", "is_whole"),
    [("finish", "served", True), ("truncate", "truncated", False), ("error", "late", False)],
)
def test_a_miss_is_met_as_the_contract_says(make_host: Make, on_miss: str, outcome: str, is_whole: bool) -> None:
    host = make_host(slowdown=lambda now: 50.0 if now > 3 else 1.0)
    ticket = host.submit(length=30, e2e_ms=30.0, on_miss=on_miss).ticket
    host.run()
    assert host.ended == [(ticket, outcome)]
    assert (ticket.num_new == 30) == is_whole
    assert not ticket.kept()


def test_a_cancelled_request_holds_nothing_at_the_next_step(make_host: Make) -> None:
    host = make_host()
    running, waiting = host.submit(length=30).ticket, host.submit(length=30).ticket
    host.scheduler.step()
    for ticket in (running, waiting):
        host.scheduler.cancel(ticket)
        host.scheduler.cancel(ticket)
    assert host.engine.calls[-2:] == [("release", running.number), ("release", waiting.number)]
    assert not host.scheduler.step()
    assert [outcome for _, outcome in host.ended] == ["cancelled", "cancelled"]


def test_a_long_prompt_does_not_hold_up_answers_beyond_the_limit(make_host: Make) -> None:
    host = make_host(FixedDepth(0), max_stall_ms=4.1)
    host.submit(length=40)
    host.scheduler.step()
    host.submit(prompt=100)
    host.run()
    pieces = [call[4] for call in host.engine.calls if call[:2] == ("extend", 1)]
    # 0.16 ms for a token at 16 blocks.
    assert pieces == [25, 25, 25, 25]
    kinds = [call[0] for call in host.engine.calls if call[0] != "release"]
    assert ("extend", "extend") not in set(pairwise(kinds[2:]))
    host = make_host(FixedDepth(0), max_stall_ms=4.1)
    host.submit(prompt=100)
    host.run()
    assert ("extend", 0, 0, 0, 100) in host.engine.calls


def test_requests_at_one_level_share_a_step(make_host: Make) -> None:
    host = make_host(max_rows=4)
    for length in (8, 12, 30):
        host.submit(length=length)
    host.run()
    assert ("decode", (0, 1, 2), 0) in host.engine.calls
    assert ("decode", (2,), 0) in host.engine.calls


def test_gaps_between_tokens_are_measured_with_what_came_between(make_host: Make) -> None:
    host = make_host(FixedDepth(0))
    first = host.submit(length=20).ticket
    host.scheduler.step()
    host.submit(prompt=100)
    host.run()
    # 16 ms for the prompt of the other, and a step of both: 0.06 ms a block.
    assert first.longest_gap_ms == pytest.approx(16 + 0.96, rel=1e-6)


def test_time_between_steps_counts_and_time_without_work_does_not(make_host: Make) -> None:
    host = make_host(on_plan=lambda _plan: setattr(host.clock, "now_ms", host.clock.now_ms + 1.0))
    host.submit(prompt=8, length=20)
    host.run()
    idle_ms, ran = 500.0, len(host.steps)
    host.clock.now_ms += idle_ms
    host.submit(prompt=8, length=20)
    host.run()
    extra_ms = [step.took_ms - step.profiled_ms for step in host.steps]
    assert len(host.steps) == 2 * ran
    assert extra_ms[1:ran] == pytest.approx([1.0] * (ran - 1))
    assert extra_ms[ran] < 1.0
    assert extra_ms[ran + 1 :] == pytest.approx([1.0] * (ran - 1))


@pytest.mark.parametrize("options", [{"max_rows": 0}, {"max_waiting": 0}, {"block_steps": 0}, {"max_stall_ms": 0.0}])
def test_options_are_checked(make_host: Make, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        make_host(**options)


def test_a_contract_names_limits_that_a_budget_can_keep() -> None:
    assert Contract(LatencyBudget(e2e_ms=5.0, ttft_ms=5.0)).budget is not None
