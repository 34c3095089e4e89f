"""What is decided between two steps, and by whom.

A step runs some rows at one level: a piece of one prompt, or up to a few tokens of several answers. Between steps a
policy sees everything that runs and waits, and says what comes next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from blockexport.routing.ladder import Ladder
from blockexport.routing.lengths import LengthPredictor
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.ticket import Ticket

Order = Literal["edf", "fifo"]


@dataclass(slots=True)
class BatchState:
    """What a policy may know.

    Attributes:
        now_ms: by the scheduler's clock.
        ladder: the levels.
        latency: what steps take at present.
        lengths: how long answers become.
        running: requests whose prompt was run, by due time.
        waiting: requests whose prompt was not, in the order of service.
        max_rows: most rows that run at a time.
        may_prefill: whether a prompt may be run now; False right after a piece of one, if answers wait for their turn.
        earned_per_ms: worth delivered in time per millisecond of engine time, of late.
    """

    now_ms: float
    ladder: Ladder
    latency: OnlineLatency
    lengths: LengthPredictor
    running: Sequence[Ticket]
    waiting: Sequence[Ticket]
    max_rows: int
    may_prefill: bool = True
    earned_per_ms: float = 0.0

    @property
    def has_room(self) -> bool:
        """Whether one of the waiting could be taken in now."""
        return self.may_prefill and bool(self.waiting) and len(self.running) < self.max_rows


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What comes next, and why.

    Attributes:
        kind: run the prompt of one request, or go on with the answers of some.
        tickets: whose; the first is the one that the level was chosen for.
        level: index of the level.
        why: the rule that decided.
        facts: the numbers it decided by. `depth_limit`, if there, is the greatest depth at which the first of the
            tickets is in time; it tells for every level whether it was an alternative.
    """

    kind: Literal["prefill", "decode"]
    tickets: Sequence[Ticket]
    level: int
    why: str
    facts: Mapping[str, Any]

    def to_json(self, ladder: Ladder) -> dict[str, Any]:
        """The decision as a trace holds it."""
        limit, worth = self.facts.get("depth_limit"), self.tickets[0].worth
        return {
            "kind": self.kind,
            "requests": [ticket.number for ticket in self.tickets],
            "level": ladder.names[self.level],
            "why": self.why,
            "facts": dict(self.facts),
            "alternatives": [
                {"level": name, "worth": worth[index], "in_time": None if limit is None else depth <= limit}
                for index, (name, depth) in enumerate(zip(ladder.names, ladder.depths, strict=True))
                if index != self.level
            ],
        }


class EarliestDueFirst:
    """What policies share that serve by due time, end what is late, and may give any level."""

    __slots__ = ()

    @property
    def order(self) -> Order:
        """By due time."""
        return "edf"

    @property
    def sheds(self) -> bool:
        """What is late is ended."""
        return True

    def shallowest(self, ladder: Ladder, /) -> int:
        """Any level may be given."""
        return len(ladder.depths) - 1


class StepPolicy(Protocol):
    """A pure rule: the same state gives the same plan."""

    @property
    def name(self) -> str:
        """Name in the registry."""
        ...

    @property
    def order(self) -> Order:
        """How requests wait: by due time or by arrival."""
        ...

    @property
    def sheds(self) -> bool:
        """Whether requests that can no longer be in time are ended."""
        ...

    def shallowest(self, ladder: Ladder, /) -> int:
        """Index of the shallowest level the policy would ever give; what is too late even there is shed."""
        ...

    def decide(self, state: BatchState, /) -> StepPlan:
        """What comes next; something runs or waits."""
        ...
