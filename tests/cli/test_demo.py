"""What the verb does around the demo itself, which is run as a whole elsewhere."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

LEVEL = {
    "name": "d4",
    "depth": 4,
    "quality": {"exact_match": {"value": 0.5}, "exact_match/copy": {"value": 0.1}},
    "prefill_ms": 1.0,
    "decode_ms": 0.5,
    "speedup": 1.0,
}
ANSWERS = [
    {"prompt": "a", "budget_ms": 3.0, "level": "d4", "text": "b", "predicted_ms": 1.0, "observed_ms": 1.2},
    {"prompt": "a", "budget_ms": 0.1, "level": None, "text": None, "why": "no", "fastest_ms": 0.7},
]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> None:
    import blockexport.pipeline.demo
    import blockexport.report

    def run_demo(out: Path, on_stage: Any) -> SimpleNamespace:
        on_stage("working", 0.5)
        value = {"levels": [LEVEL], "bundle": str(out / "bundle"), "answers": ANSWERS}
        return SimpleNamespace(bundle=SimpleNamespace(folder=out / "bundle"), to_json=lambda: value)

    monkeypatch.setattr(blockexport.pipeline.demo, "run_demo", run_demo)
    monkeypatch.setattr(blockexport.report, "write_report", lambda bundle, out: out)


@pytest.mark.usefixtures("demo")
def test_the_document_names_levels_bundle_and_report(cli: Any, tmp_path: Path) -> None:
    done = cli("demo", "--out", tmp_path, "--json")
    assert done.code == 0
    assert done.value["levels"] == [LEVEL]
    assert done.value["bundle"] == str(tmp_path / "bundle")
    assert done.value["report"] == str(tmp_path / "report.html")
    assert "working" in done.err


@pytest.mark.usefixtures("demo")
def test_people_see_the_ladder_and_where_the_report_is(cli: Any, tmp_path: Path) -> None:
    text = cli("demo", "--out", tmp_path).out
    assert "exact_match 0.5" in text
    assert "exact_match/copy" not in text
    assert "1.00x" in text
    assert "infeasible; the fastest level needs 0.7 ms" in text
    assert f"report: {tmp_path / 'report.html'}" in text
