from collections.abc import Callable
from typing import Any

from blockexport.routing.policies.adaptive import SeedAdaptive
from blockexport.routing.policies.deepest_fit import DeepestFit
from blockexport.routing.policies.per_request import SeedPerRequest
from blockexport.routing.steps.at_admission import AtAdmission

Make = Callable[..., Any]


def test_the_point_predictor_reckons_with_what_is_left(make_ticket: Make, make_state: Make) -> None:
    # Alone: 1 ms a block for the prompt and 19 steps of 0.05; 31.2 ms at 16 blocks, 23.4 at 12.
    ticket = make_ticket(0, e2e_ms=32.0)
    assert AtAdmission(DeepestFit()).decide(make_state([], [ticket])).level == 0
    assert AtAdmission(DeepestFit()).decide(make_state([], [ticket], now_ms=8.0)).level == 1


def test_the_seeds_rule_does_not_see_that_time_has_passed(make_ticket: Make, make_state: Make) -> None:
    policy = AtAdmission(SeedAdaptive(), order="fifo", sheds=False, sees_now=False)
    ticket = make_ticket(0, e2e_ms=32.0)
    assert policy.decide(make_state([], [ticket], now_ms=31.0)).level == 0


def test_each_answer_keeps_the_level_that_it_was_given(make_ticket: Make, make_state: Make) -> None:
    policy = AtAdmission(SeedPerRequest("simple"), order="fifo", sheds=False, sees_now=False)
    one, two, three = (make_ticket(number, e2e_ms=100.0 + number, done=1) for number in range(3))
    two.level = 2
    plan = policy.decide(make_state([one, two, three], []))
    assert (plan.level, plan.tickets) == (0, (one, three))
