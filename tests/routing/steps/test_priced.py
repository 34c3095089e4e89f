import json
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from blockexport.routing.fit import Rows, fits
from blockexport.routing.steps.priced import Priced

Make = Callable[..., Any]

REQUESTS = st.lists(st.tuples(st.floats(1, 400), st.integers(1, 800), st.integers(1, 64)), max_size=6)
EARNED = st.sampled_from([0.0, 0.01, 0.1])


def _states(make_ticket: Make, make_state: Make, running: Any, waiting: Any, earned: float) -> Any:
    rows = [
        make_ticket(number, e2e_ms=e2e, prompt=prompt, longest=longest + 1, done=1)
        for number, (e2e, prompt, longest) in enumerate(running[:3])
    ]
    queue = [
        make_ticket(10 + number, e2e_ms=e2e, prompt=prompt, longest=longest)
        for number, (e2e, prompt, longest) in enumerate(waiting)
    ]
    return make_state(rows, queue, earned_per_ms=earned)


@given(running=REQUESTS, waiting=REQUESTS, earned=EARNED)
def test_nobody_is_taken_in_late_or_to_the_harm_of_others(
    make_ticket: Make, make_state: Make, running: Any, waiting: Any, earned: float
) -> None:
    state = _states(make_ticket, make_state, running, waiting, earned)
    if not state.waiting:
        return
    plan, rows = Priced().decide(state), Rows(state)
    if plan.kind == "decode":
        return
    levels = Priced()._row_levels(state, rows, Priced().price_factor * earned * len(state.waiting))
    room_ms = rows.room_ms([max(level, row.level) for level, row in zip(levels, state.running, strict=True)])
    head = plan.tickets[0]
    if not fits(state, head, plan.level, rows, room_ms):
        # Only with the host to itself, and only if it would be late at the shallowest level too.
        assert not state.running
        assert not any(fits(state, ticket, ticket.shallowest, rows, room_ms) for ticket in state.waiting)


@given(e2e_ms=st.floats(1, 400), longest=st.integers(2, 64), earned=EARNED)
def test_an_answer_goes_on_within_its_budget_if_any_level_is(
    make_ticket: Make, make_state: Make, e2e_ms: float, longest: int, earned: float
) -> None:
    state = make_state([make_ticket(0, e2e_ms=e2e_ms, longest=longest, done=1)], [], earned_per_ms=earned)
    limit, depths = Rows(state).limits[0], state.ladder.depths
    level = Priced().decide(state).level
    assert depths[level] == max((depth for depth in depths if depth <= limit), default=depths[-1])


@given(running=REQUESTS, waiting=REQUESTS, earned=EARNED)
def test_the_same_state_gives_the_same_plan_and_is_left_alone(
    make_ticket: Make, make_state: Make, running: Any, waiting: Any, earned: float
) -> None:
    states = [_states(make_ticket, make_state, running, waiting, earned) for _ in range(2)]
    if not (states[0].running or states[0].waiting):
        return
    plans = [Priced().decide(state).to_json(state.ladder) for state in states]
    again = Priced().decide(states[0]).to_json(states[0].ladder)
    assert plans[0] == plans[1] == again
    assert json.loads(json.dumps(again)) == again
    assert {again["level"], *(other["level"] for other in again["alternatives"])} == set(states[0].ladder.names)


@given(limits=st.tuples(st.floats(1, 500), st.floats(1, 500)), prompt=st.integers(1, 800), longest=st.integers(1, 64))
def test_a_larger_budget_never_gives_a_shallower_level(
    make_ticket: Make, make_state: Make, limits: tuple[float, float], prompt: int, longest: int
) -> None:
    tight, loose = (
        Priced().decide(make_state([], [make_ticket(0, e2e_ms=e2e, prompt=prompt, longest=longest)])).level
        for e2e in sorted(limits)
    )
    assert loose <= tight


def test_free_time_is_spent_on_depth_and_dear_time_is_not(make_ticket: Make, make_state: Make) -> None:
    queue = [make_ticket(number, e2e_ms=1e4 + number) for number in range(3)]
    assert Priced().decide(make_state([], queue)).level == 0
    # 20 blocks of time, 16 ms for the prompt at full depth: the last four blocks add 0.15.
    dear = Priced().decide(make_state([], queue, earned_per_ms=0.03))
    assert (dear.kind, dear.level) == ("prefill", 1)


def test_who_is_not_worth_the_price_lets_others_pass(make_ticket: Make, make_state: Make) -> None:
    long = make_ticket(0, e2e_ms=1000.0, prompt=5000)
    short = make_ticket(1, e2e_ms=1001.0, prompt=10, longest=2)
    running = make_ticket(2, e2e_ms=5000.0, longest=40, done=1)
    plan = Priced().decide(make_state([running], [long, short], earned_per_ms=0.01))
    assert plan.tickets == (short,)


def test_an_answer_goes_down_at_once_and_up_only_when_settled(make_ticket: Make, make_state: Make) -> None:
    row = make_ticket(0, e2e_ms=30.0, longest=64, done=1)
    # 63 steps of 0.05 ms a block within 30 ms: nine blocks.
    assert Priced().decide(make_state([row], [])).level == 2
    row.level, row.switched_at = 2, 0
    row.end_by_ms = 1e4
    assert Priced().decide(make_state([row], [])).level == 2
    row.hand_out(24, 0.0)
    row.filled = [row.num_tokens] * 4
    assert Priced().decide(make_state([row], [])).level == 0
    row.filled = [0, row.num_tokens, row.num_tokens, row.num_tokens]
    assert Priced().decide(make_state([row], [])).level == 1


def test_a_quality_floor_is_kept_in_every_case(make_ticket: Make, make_state: Make) -> None:
    late = make_ticket(0, e2e_ms=1.0, min_quality=0.8)
    assert Priced().decide(make_state([], [late])).level == 1
    row = make_ticket(1, e2e_ms=1.0, longest=64, done=1, min_quality=0.8)
    assert Priced().decide(make_state([row], [])).level == 1


def test_every_kind_of_limit_counts(make_ticket: Make, make_state: Make) -> None:
    # The prompt alone takes 1 ms a block.
    assert Priced().decide(make_state([], [make_ticket(0, ttft_ms=12.5)])).level == 1
    assert Priced().decide(make_state([], [make_ticket(0, gap_ms=0.45)])).level == 2
    assert Priced().decide(make_state([], [make_ticket(0, tpot_ms=0.25)])).level == 3
    row = make_ticket(0, gap_ms=0.65, done=1)
    assert Priced().decide(make_state([row], [])).level == 1
    # A prompt of 16 ms would break the promise about gaps.
    assert Priced().decide(make_state([row], [make_ticket(1, e2e_ms=1e4)])).kind == "decode"
