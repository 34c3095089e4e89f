"""A request on its way: what it asked for, and how far it is."""

import math
from dataclasses import dataclass, field

from blockexport.routing.contract import Contract
from blockexport.routing.costs import Line
from blockexport.routing.frontier import Frontier


@dataclass(slots=True, eq=False)
class Ticket:
    """State of one request. The scheduler changes it; policies only read it.

    Attributes:
        number: order of arrival.
        arrived_ms: on the scheduler's clock.
        prompt_tokens: to be run before the first new token.
        max_new_tokens: most tokens of the answer.
        contract: its terms.
        worth: what a token of each level is worth to it, deepest first.
        frontier: which level a price of a block asks for.
        shallowest: index of the shallowest level that keeps its quality floor.
        prompt_line: what its prompt takes on the host as profiled.
        num_prefilled: prompt tokens that were run.
        num_new: tokens handed out.
        first_ms: when the first token was handed out; NaN before.
        last_ms: when the last token was; NaN before the first.
        level: level that ran last; -1 before the first.
        filled: by level, how many of its first tokens lie in the caches of all its blocks.
        tokens_at: by level, tokens handed out.
        worth_sum: their worth together.
        busy_ms: engine time that it took part in, shared out by rows.
        num_switches: changes of level between two tokens.
        switched_at: tokens handed out at the last of them.
        is_promised: whether its caller was told what to expect.
        num_faults: failures of engines since its last token.
        longest_gap_ms: longest time between two tokens.
        end_by_ms: when the answer has to be complete; infinite without a limit, like the next three.
        first_by_ms: when the first token has to be out.
        gap_ms: longest time allowed between two tokens.
        tpot_ms: mean time allowed for each token after the first.
        has_pace: whether anything but its end is limited.
        weight: how much it counts beside others.
    """

    number: int
    arrived_ms: float
    prompt_tokens: int
    max_new_tokens: int
    contract: Contract
    worth: tuple[float, ...]
    frontier: Frontier
    shallowest: int
    prompt_line: Line
    num_prefilled: int = 0
    num_new: int = 0
    first_ms: float = math.nan
    last_ms: float = math.nan
    level: int = -1
    filled: list[int] = field(default_factory=list)
    tokens_at: list[int] = field(default_factory=list)
    worth_sum: float = 0.0
    busy_ms: float = 0.0
    num_switches: int = 0
    switched_at: int = 0
    is_promised: bool = False
    num_faults: int = 0
    longest_gap_ms: float = 0.0
    end_by_ms: float = math.inf
    first_by_ms: float = math.inf
    gap_ms: float = math.inf
    tpot_ms: float = math.inf
    has_pace: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.filled, self.tokens_at = [0] * len(self.worth), [0] * len(self.worth)
        budget = self.contract.budget
        if budget is not None:
            self.end_by_ms = self.arrived_ms + (budget.e2e_ms or math.inf)
            self.first_by_ms = self.arrived_ms + (budget.ttft_ms or math.inf)
            self.gap_ms = budget.gap_ms or math.inf
            self.tpot_ms = budget.tpot_ms or math.inf
        self.has_pace = min(self.first_by_ms, self.gap_ms, self.tpot_ms) < math.inf
        self.weight = self.contract.weight

    @property
    def num_tokens(self) -> int:
        """Tokens in its history that a step has to attend to."""
        return self.num_prefilled + max(0, self.num_new - 1)

    @property
    def due_ms(self) -> float:
        """The next moment it is judged at: the first token, then the end. The order of service goes by it."""
        return self.end_by_ms if self.num_new else min(self.first_by_ms, self.end_by_ms)

    def finish_by_ms(self, num_new: float) -> float:
        """When an answer of `num_new` tokens has to be complete, given when its first token came."""
        if self.num_new and self.tpot_ms != math.inf:
            return min(self.end_by_ms, self.first_ms + self.tpot_ms * (num_new - 1))
        return self.end_by_ms

    def hand_out(self, num_tokens: int, now_ms: float) -> None:
        """Note tokens that came at its level."""
        self.num_new += num_tokens
        self.last_ms = now_ms
        self.tokens_at[self.level] += num_tokens
        self.worth_sum += num_tokens * self.worth[self.level]

    def missing(self, level: int) -> int:
        """Tokens that a level has to run again before it can go on."""
        return self.num_tokens - self.filled[level]

    def kept(self) -> bool:
        """Whether every limit was kept, once the answer is complete."""
        steps = self.num_new - 1
        return (
            self.first_ms <= self.first_by_ms
            and self.last_ms <= self.finish_by_ms(self.num_new)
            and self.longest_gap_ms <= self.gap_ms
            and steps >= 0
        )
