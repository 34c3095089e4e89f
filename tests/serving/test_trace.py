import json
from pathlib import Path
from typing import Any

import pytest

from blockexport.routing.ladder import Ladder
from blockexport.routing.step import StepPlan
from blockexport.routing.ticket import Ticket
from blockexport.serving.service import Ending, Promise
from blockexport.serving.trace import RanStep, TraceFile


@pytest.fixture
def ticket(make_host: Any) -> Ticket:
    return make_host().submit(prompt=5).ticket


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_event_is_a_line_and_a_restart_adds_to_the_file(tmp_path: Path, ticket: Ticket) -> None:
    path, ladder = (
        tmp_path / "new" / "trace.jsonl",
        Ladder(("d16", "d12", "d8", "d4"), (16, 12, 8, 4), {None: (1, 1, 1, 0)}),
    )
    trace = TraceFile(path, ladder)
    trace.decided(StepPlan("prefill", (ticket,), 1, "fits", {"depth_limit": 13.0}), 2, 3)
    trace.promised(ticket, Promise("d12", 10.0, 15.0, "fits"))
    trace.ran(RanStep("prefill", 1, 1, 5, 0, 2.0, 1.5, 3.25))
    trace.close()
    trace = TraceFile(path, ladder)
    trace.ended(ticket, Ending("served", "length", "", {"d12": 4}, 0, 4.0, 12.0, is_in_time=True))
    trace.ended(None, Ending("cancelled", None, "", {}, 0, None, 1.0, is_in_time=False))
    trace.close()
    decision, promise, step, end, gone = read(path)
    assert [event["event"] for event in read(path)] == ["decision", "promise", "step", "end", "end"]
    assert decision["level"] == "d12"
    assert decision["requests"] == [ticket.number]
    assert (decision["running"], decision["waiting"]) == (2, 3)
    assert {entry["level"]: entry["in_time"] for entry in decision["alternatives"]} == {
        "d16": False,
        "d8": True,
        "d4": True,
    }
    assert (promise["predicted_ms"], promise["bound_ms"]) == (10.0, 15.0)
    assert (step["level"], step["took_ms"], step["profiled_ms"], step["slowdown"]) == ("d12", 3.25, 2.0, 1.5)
    assert (end["request"], end["prompt_tokens"], end["tokens_at"]) == (ticket.number, 5, {"d12": 4})
    assert "request" not in gone
    times = [event["at_ms"] for event in read(path)]
    assert times == sorted(times)


def test_lines_are_there_before_the_file_is_closed(tmp_path: Path, ticket: Ticket) -> None:
    trace = TraceFile(tmp_path / "trace.jsonl", Ladder(("d2", "d1"), (2, 1), {None: (1.0, 0.5)}))
    trace.promised(ticket, Promise("d2", 1.0, 2.0, "fits"))
    assert len(read(tmp_path / "trace.jsonl")) == 1
    trace.close()
