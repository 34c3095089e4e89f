"""What a service decided, what came of it, and when: a line of JSON each, for who wants to know why."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from blockexport.routing.ladder import Ladder
from blockexport.routing.step import StepPlan
from blockexport.routing.ticket import Ticket
from blockexport.serving.service import Ending, Promise


@dataclass(frozen=True, slots=True)
class RanStep:
    """A piece of a prompt or a block of decode steps, as it ran.

    Attributes:
        kind: which of both.
        level: index of the level.
        num_rows: requests that shared it.
        num_tokens: of the prompt, or steps of the block.
        kv_tokens: in the cache of all its rows before.
        profiled_ms: what the profile says that it takes, without the slowdown.
        slowdown: present time over profiled time, as it was thought to be.
        took_ms: what it took.
    """

    kind: Literal["prefill", "decode"]
    level: int
    num_rows: int
    num_tokens: int
    kv_tokens: int
    profiled_ms: float
    slowdown: float
    took_ms: float


class TraceFile:
    """A file of lines, each with `event` and `at_ms` (monotonic); appended to, so that a restart loses nothing.

    Events are `decision`, `step`, `promise` and `end`. Lines are written at once, by the thread of the engine: some
    tens of microseconds each.

    Args:
        path: of the file.
        ladder: the levels.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, ladder: Ladder) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._ladder = ladder

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()

    def decided(self, plan: StepPlan, num_running: int, num_waiting: int) -> None:
        """What comes next."""
        self._write("decision", {"running": num_running, "waiting": num_waiting, **plan.to_json(self._ladder)})

    def ran(self, step: RanStep) -> None:
        """It ran."""
        self._write("step", {**asdict(step), "level": self._ladder.names[step.level]})

    def promised(self, ticket: Ticket, promise: Promise) -> None:
        """A request's turn has come."""
        told = {"level": promise.level, "predicted_ms": promise.predicted_ms, "bound_ms": promise.bound_ms}
        self._write("promise", {"request": ticket.number, **told})

    def ended(self, ticket: Ticket | None, ending: Ending) -> None:
        """A request has ended, or was refused."""
        asked = {} if ticket is None else {"request": ticket.number, "prompt_tokens": ticket.prompt_tokens}
        self._write("end", {**asked, **asdict(ending)})

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        line = json.dumps({"event": event, "at_ms": time.perf_counter_ns() / 1e6, **fields})
        self._file.write(f"{line}\n")
