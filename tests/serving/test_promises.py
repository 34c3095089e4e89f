import numpy as np
import pytest

from blockexport.routing.contract import Contract
from blockexport.routing.costs import StepCosts
from blockexport.routing.frontier import frontier
from blockexport.routing.ladder import Ladder
from blockexport.routing.lengths import LengthPredictor
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.step import StepPlan
from blockexport.routing.ticket import Ticket
from blockexport.serving.promises import Promises

LADDER = Ladder(("d4", "d2"), (4, 2), {None: (1.0, 0.5)})
# A prefill takes 0.1 ms a token and block, a step 1 ms a block and 0.5 ms a block and row.
COSTS = StepCosts((0.0, 0.0, 0.0, 0.0, 0.1, 0.0), (0.0, 0.0, 1.0, 0.5, 0.0))


def _ticket(number: int, prompt_tokens: int, max_new_tokens: int, level: int = -1, num_new: int = 0) -> Ticket:
    ticket = Ticket(
        number,
        0.0,
        prompt_tokens,
        max_new_tokens,
        Contract(),
        (1.0, 0.5),
        frontier((4, 2), (1.0, 0.5)),
        1,
        COSTS.prefill_line(prompt_tokens),
    )
    ticket.level, ticket.num_new = level, num_new
    return ticket


def _plan(ticket: Ticket, level: int = 0) -> StepPlan:
    return StepPlan("prefill", (ticket,), level, "a rule", {})


def _promises(alpha: float = 0.1) -> Promises:
    return Promises(LADDER, OnlineLatency(COSTS, 2), LengthPredictor(), alpha)


def test_an_answer_alone_takes_its_prompt_and_its_steps() -> None:
    promise = _promises().make(_plan(_ticket(0, 10, 5)), [], now_ms=7.0)
    assert promise.predicted_ms == pytest.approx(7 + 10 * 4 * 0.1 + 4 * 4 * 1.5)
    assert promise.bound_ms > promise.predicted_ms
    (other,) = promise.alternatives
    assert other["level"] == "d2"
    assert other["predicted_ms"] == pytest.approx(7 + 10 * 2 * 0.1 + 4 * 2 * 1.5)


def test_others_slow_it_down_until_they_end() -> None:
    # One at the same level with 2 tokens to go, one at the other with many.
    running = [_ticket(1, 10, 5, level=0, num_new=3), _ticket(2, 10, 50, level=1, num_new=3)]
    promise = _promises().make(_plan(_ticket(0, 10, 5)), running, now_ms=0.0)
    shared = 2 * (4 * (1 + 2 * 0.5) + 2 * 1.5)
    alone = 2 * (4 * 1.5 + 2 * 1.5)
    assert promise.predicted_ms == pytest.approx(4.0 + shared + alone)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_bounds_hold_as_often_as_was_asked(alpha: float) -> None:
    promises, rng, kept = _promises(alpha), np.random.default_rng(0), []
    for number in range(2000):
        ticket = _ticket(number, 10, 20)
        # Predictions are off by a factor of two, and errors have a long tail.
        took = 2 * promises.make(_plan(ticket), [], 0.0).predicted_ms * rng.lognormal(0, 0.3)
        kept.append(promises.keep(ticket, took, is_whole=True))
    assert np.mean(kept) >= 1 - alpha
    assert np.mean(kept[1000:]) < 1.0
    assert promises.coverage.overall == pytest.approx(np.mean(kept))


def test_what_is_cut_short_counts_as_broken_and_what_was_given_up_does_not_count() -> None:
    promises = _promises()
    one, other = _ticket(0, 10, 5), _ticket(1, 10, 5)
    promises.make(_plan(one), [], 0.0)
    promises.make(_plan(other), [], 0.0)
    assert promises.keep(one, 0.1, is_whole=False) is False
    promises.forget(other)
    assert promises.keep(other, 0.1, is_whole=True) is None
    assert promises.coverage.overall == 0.0
