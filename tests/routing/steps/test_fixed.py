from collections.abc import Callable
from typing import Any

from blockexport.routing.steps.fixed import FixedDepth

Make = Callable[..., Any]


def test_it_serves_at_its_level_and_takes_in_the_first_who_fits(make_ticket: Make, make_state: Make) -> None:
    late, fine = make_ticket(0, e2e_ms=5.0), make_ticket(1, e2e_ms=100.0)
    running = make_ticket(2, e2e_ms=200.0, done=1)
    plan = FixedDepth(1).decide(make_state([running], [late, fine]))
    assert (plan.kind, plan.tickets, plan.level) == ("prefill", (fine,), 1)
    first = FixedDepth(1, sheds=False).decide(make_state([running], [late, fine]))
    assert first.tickets == (late,)


def test_nobody_is_taken_in_who_would_make_another_late(make_ticket: Make, make_state: Make) -> None:
    # 19 steps of 0.06 ms a block: 18.3 ms at 16 blocks, and the prompt of the other takes 16 ms.
    running, waiting = make_ticket(0, e2e_ms=30.0, done=1), make_ticket(1, e2e_ms=1000.0)
    assert FixedDepth(0).decide(make_state([running], [waiting])).kind == "decode"
    assert FixedDepth(-1).shallowest(make_state([], []).ladder) == 3
