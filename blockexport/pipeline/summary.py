"""What CI shows of a build: a Markdown summary for people, and the gates as a JUnit file for machines."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from blockexport.bundle.manifest import LevelEntry, Manifest
from blockexport.bundle.reader import Bundle
from blockexport.core.jsonio import write_atomically
from blockexport.core.masks import DepthLadder, DepthLevel
from blockexport.core.quality import Quality
from blockexport.pipeline.gates import GateResult

# What XML 1.0 cannot say, not even escaped.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """How a build went.

    Attributes:
        model: name of the model.
        ladder: the levels asked for.
        results: every gate's verdict.
        seconds: how long it took.
        manifest: of the bundle; None when there is none.
        error: why there is no bundle; "" when there is one.
    """

    model: str
    ladder: DepthLadder
    results: Sequence[GateResult]
    seconds: float
    manifest: Manifest | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build step leaves.

    Attributes:
        bundle: the bundle, opened.
        seconds: how long it took.
        results: every gate's verdict; empty when nothing was done.
        unchanged: whether the bundle that was there is what would have been built.
        summary: the Markdown file; None when nothing was done.
        junit: the JUnit file; None when nothing was done.
    """

    bundle: Bundle
    seconds: float
    results: tuple[GateResult, ...] = ()
    unchanged: bool = False
    summary: Path | None = None
    junit: Path | None = None


def write_summary(out: Path, outcome: BuildOutcome) -> tuple[Path, Path]:
    """Write `<out>.summary.md` and `<out>.junit.xml` beside a bundle's place, each in one step.

    Returns:
        The two paths.
    """
    place = out.absolute()
    markdown = place.with_name(f"{place.name}.summary.md")
    junit = place.with_name(f"{place.name}.junit.xml")
    write_atomically(markdown, to_markdown(outcome))
    write_atomically(junit, to_junit(outcome))
    return markdown, junit


def to_markdown(outcome: BuildOutcome) -> str:
    """The ladder and the gates as tables."""
    failed = [result for result in outcome.results if not result.passed]
    verdict = f"**Failed:** {_cell(outcome.error)}" if outcome.error else "**Passed**"
    lines = [f"# blockexport: {_cell(outcome.model)}", "", f"{verdict} ({outcome.seconds:.1f} s)", ""]
    lines += ["## Depth ladder", "", *_ladder_table(outcome), ""]
    lines += [f"- {_cell(note)}" for note in outcome.ladder.notes]
    lines += ["", f"## Gates: {len(outcome.results) - len(failed)} of {len(outcome.results)} passed", ""]
    lines += _table(
        ("gate", "level", "verdict", "detail"),
        [(r.gate, r.level, "passed" if r.passed else "**failed**", r.detail) for r in outcome.results],
    )
    return "\n".join(lines) + "\n"


def _ladder_table(outcome: BuildOutcome) -> list[str]:
    if outcome.manifest is None:
        # What was measured stands among the gates.
        levels = [(level.name, str(level.depth), _skipped(level)) for level in outcome.ladder.levels]
        return _table(("level", "blocks", "skipped"), levels)
    entries = {level.name: level for level in outcome.manifest.levels}
    rows = []
    for level in outcome.ladder.levels:
        entry = entries[level.name]
        rows.append((level.name, str(level.depth), _skipped(level), _quality(entry), _error(entry)))
    return _table(("level", "blocks", "skipped", "quality", "largest error"), rows)


def _skipped(level: DepthLevel) -> str:
    return ", ".join(map(str, level.mask.skipped)) or "none"


def _quality(entry: LevelEntry) -> str:
    if not entry.quality:
        return "not measured"
    metrics = Quality.from_json(entry.quality).metrics
    return ", ".join(f"{name} {m.value:.4g} ± {m.stderr:.2g}" for name, m in metrics.items() if "/" not in name)


def _error(entry: LevelEntry) -> str:
    if not entry.parity:
        return "not measured"
    worst = max(entry.parity, key=lambda record: record.max_abs_err / max(record.tolerance, 1e-300))
    return f"{worst.max_abs_err:.2g} of {worst.tolerance:.2g} ({worst.check})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    body = [[_cell(text) for text in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def to_junit(outcome: BuildOutcome) -> bytes:
    """One test case for each gate; a build that broke off has one more, which says why."""
    failed = sum(not result.passed for result in outcome.results)
    broke_off = bool(outcome.error) and not failed
    counts = {
        "name": "blockexport build",
        "tests": str(len(outcome.results) + broke_off),
        "failures": str(failed),
        "errors": str(int(broke_off)),
        "time": f"{outcome.seconds:.3f}",
    }
    root = ET.Element("testsuites", counts)
    suite = ET.SubElement(root, "testsuite", counts)
    for result in outcome.results:
        case = _case(suite, result.level, result.gate)
        if result.passed:
            ET.SubElement(case, "system-out").text = _text(result.detail)
        else:
            ET.SubElement(case, "failure", {"message": _text(result.detail), "type": result.gate.split(":")[0]})
    if broke_off:
        ET.SubElement(_case(suite, "all", "build"), "error", {"message": _text(outcome.error), "type": "build"})
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _case(suite: ET.Element, level: str, gate: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", {"classname": f"blockexport.{_text(level)}", "name": _text(gate)})


def _text(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
