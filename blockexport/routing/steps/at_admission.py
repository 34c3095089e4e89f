"""A rule for single requests, asked once for each as it is taken in: the seed's two rules, and the point predictor."""

from dataclasses import dataclass

from blockexport.core.latency import LatencyBudget
from blockexport.routing.estimate import LevelEstimate
from blockexport.routing.ladder import Ladder
from blockexport.routing.policy import RoutingPolicy
from blockexport.routing.step import BatchState, Order, StepPlan
from blockexport.routing.ticket import Ticket
from blockexport.routing.turn import take_turn


@dataclass(frozen=True, slots=True)
class AtAdmission:
    """Each request runs at the level that the rule gave it, to its end.

    Attributes:
        rule: of the registry of single requests.
        order: how requests wait.
        sheds: whether requests that can no longer be in time are ended.
        sees_now: whether the rule is told what is left of the budget and how fast the host runs now; False tells it the
            whole budget and the profile, which is all that the seed's rules knew.
    """

    rule: RoutingPolicy
    order: Order = "edf"
    sheds: bool = True
    sees_now: bool = True

    @property
    def name(self) -> str:
        """Name in the registry."""
        return self.rule.name

    def shallowest(self, ladder: Ladder, /) -> int:
        """Any level may be given."""
        return len(ladder.depths) - 1

    def decide(self, state: BatchState, /) -> StepPlan:
        """Take in at the level of the rule, else go on."""
        levels = [row.level for row in state.running]
        why = f"the level that {self.rule.name} gave it"
        return take_turn(state, levels, lambda ticket: self._level(state, ticket), why, careful=self.sheds)

    def _level(self, state: BatchState, ticket: Ticket) -> int:
        choice = self.rule.choose(self._estimates(state, ticket), self._budget(ticket, state.now_ms))
        return min(state.ladder.names.index(choice.picked.level), ticket.shallowest)

    def _budget(self, head: Ticket, now_ms: float) -> LatencyBudget | None:
        if not self.sees_now or head.contract.budget is None or head.contract.budget.e2e_ms is None:
            return head.contract.budget
        # A budget is positive; what is late gets the fastest level either way.
        return LatencyBudget(e2e_ms=max(1e-6, head.end_by_ms - now_ms))

    def _estimates(self, state: BatchState, head: Ticket) -> list[LevelEstimate]:
        """Points, so each is its own bound."""
        lines = state.latency if self.sees_now else state.latency.costs
        rows = len(state.running) + 1 if self.sees_now else 1
        steps = state.lengths.remaining(0, head.max_new_tokens) - 1
        sum_kv = sum(row.num_tokens for row in state.running) if self.sees_now else 0
        fixed, slope = lines.prefill_line(head.prompt_tokens)
        step_fixed, step_slope = lines.decode_line(rows, sum_kv + head.prompt_tokens + steps / 2)
        found = []
        for name, depth in zip(state.ladder.names, state.ladder.depths, strict=True):
            first_ms = fixed + depth * slope
            all_ms = first_ms + steps * (step_fixed + depth * step_slope)
            found.append(LevelEstimate(name, depth, all_ms, all_ms, first_ms, first_ms))
        return found
