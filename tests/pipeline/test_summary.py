from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.pipeline.gates import GateResult
from blockexport.pipeline.summary import BuildOutcome, to_junit, to_markdown, write_summary

LADDER = DepthLadder.from_masks([DepthMask.full(3), DepthMask.from_kept([0, 2], 3)], notes=["a note | with a bar"])
PASSED = GateResult("parity:decode", "d3", True, "max abs error 1e-6")
FAILED = GateResult("quality:accuracy", "d2", False, "accuracy is 0.5 ± 0.1, <must> be\nat least 0.9 | really")


def outcome(*results: GateResult, error: str = "") -> BuildOutcome:
    return BuildOutcome("demo:x", LADDER, results, 1.5, error=error)


def test_every_gate_is_a_test_case() -> None:
    suite = ET.fromstring(to_junit(outcome(PASSED, FAILED, error="no")))
    (inner,) = suite
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    assert [(case.get("classname"), case.get("name")) for case in inner] == [
        ("blockexport.d3", "parity:decode"),
        ("blockexport.d2", "quality:accuracy"),
    ]
    failures = inner.findall("testcase/failure")
    assert [failure.get("type") for failure in failures] == ["quality"]
    assert "at least 0.9" in str(failures[0].get("message"))


def test_a_build_that_broke_off_is_an_error_of_its_own() -> None:
    suite = ET.fromstring(to_junit(outcome(PASSED, error="cannot trace")))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "0", "1")
    assert [error.get("message") for error in suite.iter("error")] == ["cannot trace"]


def test_what_xml_cannot_say_is_replaced() -> None:
    spoilt = GateResult("audit", "d3", False, "a\x00b\x1b[31m\ud800")
    (failure,) = ET.fromstring(to_junit(outcome(spoilt, error="x"))).iter("failure")
    assert failure.get("message") == "a\ufffdb\ufffd[31m\ufffd"


def test_the_summary_has_a_row_for_each_level_and_gate() -> None:
    text = to_markdown(outcome(PASSED, FAILED, error="gate failed"))
    assert "**Failed:** gate failed (1.5 s)" in text
    assert "| d2 | 2 | 1 |\n" in text
    assert "1 of 2 passed" in text
    assert "| parity:decode | d3 | passed | max abs error 1e-6 |" in text
    assert "| quality:accuracy | d2 | **failed** |" in text
    assert "a note \\| with a bar" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") in (4, 5) for line in rows)


def test_a_success_says_so() -> None:
    assert "**Passed** (1.5 s)" in to_markdown(outcome(PASSED))


def test_the_files_lie_beside_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = write_summary(Path("some.bundle/"), outcome(PASSED))
    assert written == (tmp_path / "some.bundle.summary.md", tmp_path / "some.bundle.junit.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.bundle.junit.xml", "some.bundle.summary.md"]
