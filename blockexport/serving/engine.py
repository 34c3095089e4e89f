"""What the scheduler needs of whatever runs the steps: the runtime, or a simulation of it."""

from collections.abc import Sequence
from typing import Protocol

from blockexport.routing.ticket import Ticket


class StepEngine(Protocol):
    """Runs steps and hands tokens out. Time passes in it, by the clock that the scheduler reads."""

    def extend(self, ticket: Ticket, level: int, first: int, num_tokens: int, /) -> None:
        """Run tokens `first` up to `first + num_tokens` of one history at a level, behind what its cache holds."""
        ...

    def begin(self, ticket: Ticket, /) -> bool:
        """Hand out the first token of a prompt that was just run; whether the answer ends with it."""
        ...

    def decode(self, tickets: Sequence[Ticket], level: int, num_steps: int, /) -> tuple[int, Sequence[Ticket]]:
        """Hand out one token of each request a step, for up to `num_steps` steps.

        Returns:
            Steps taken, at least one, and the requests whose answers ended with the last of them. It stops early when
            an answer ends, or when a request has arrived meanwhile.
        """
        ...

    def release(self, ticket: Ticket, /) -> None:
        """Free what the request holds."""
        ...
