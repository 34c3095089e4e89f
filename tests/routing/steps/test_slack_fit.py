from collections.abc import Callable
from typing import Any

import pytest

from blockexport.routing.steps.slack_fit import SlackFit

Make = Callable[..., Any]


@pytest.mark.parametrize(("e2e_ms", "level"), [(1e5, 0), (1.0, 3)])
def test_slack_decides_the_depth(make_ticket: Make, make_state: Make, e2e_ms: float, level: int) -> None:
    assert SlackFit().decide(make_state([], [make_ticket(0, e2e_ms=e2e_ms)])).level == level


def test_of_pairs_in_a_bucket_the_widest_is_taken(make_ticket: Make, make_state: Make) -> None:
    state = make_state([], [make_ticket(0, e2e_ms=1e5)])
    # One bucket holds all pairs: the most rows, and of these the deepest.
    plan = SlackFit(num_buckets=1).decide(state)
    assert (plan.facts["rows"], plan.level) == (4, 0)
    assert state.max_rows == 4


def test_it_never_asks_for_fewer_rows_than_run(make_ticket: Make, make_state: Make) -> None:
    rows = [make_ticket(number, e2e_ms=1.0, done=1) for number in range(3)]
    plan = SlackFit().decide(make_state(rows, []))
    assert (plan.kind, len(plan.tickets)) == ("decode", 3)
