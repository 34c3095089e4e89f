"""What stands in the report, read back from the HTML."""

import dataclasses
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from blockexport.bundle.reader import open_bundle
from blockexport.core.hardware import HostFingerprint
from blockexport.core.jsonio import dump_json
from blockexport.core.task_scores import TaskScores
from blockexport.errors import BackendUnavailableError, BundleError, ConfigError, IntegrityError
from blockexport.report import material, write_report

FIGURES = ("depth", "latency", "importance", "parity", "files", "memory")
VOID = {"meta", "br"}


class Page(HTMLParser):
    """The page's elements, exact figures, ids and text; refuses what is not well nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.values: set[float] = set()
        self.words = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "data":
            self.values.add(float(dict(attrs)["value"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.fixture
def complete(write_bundle, write_profile, make_study, switching, tmp_path) -> tuple[Path, str]:
    """A bundle with everything, and its report."""
    folder = write_bundle(attached={"study.json": dump_json(make_study().to_json()).encode()})
    write_profile(folder)
    html = write_report(folder, tmp_path / "report.html", switching=switching).read_text(encoding="utf-8")
    return folder, html


def test_nothing_is_missing_from_a_complete_bundle(complete):
    _, html = complete
    # The recipe alone: these bundles come from none.
    assert html.count("Not in this report:") == 1
    assert "the recipe" in html


def test_every_level_and_figure_is_there(complete):
    folder, html = complete
    page = Page(html)
    labels = [value for name, value in page.attributes if name == "aria-label"]
    for level in open_bundle(folder).manifest.levels:
        assert f"kept blocks: {', '.join(map(str, level.kept))}" in labels
        assert f"{level.name}: parity decode" in page.words
    ids = [value for name, value in page.attributes if name == "id"]
    for name in FIGURES:
        assert f"{name}-figure_1" in ids
    assert len(ids) == len(set(ids))
    assert page.tags.count("svg") == len(FIGURES)


def test_references_inside_the_page_lead_somewhere(complete):
    _, html = complete
    ids = set(re.findall(r'\bid="([^"]+)"', html))
    targets = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert targets
    assert targets <= ids


def test_the_page_needs_nothing_else(complete):
    _, html = complete
    page = Page(html)
    assert not re.search(r"(https?:)?//|file:", html)
    assert not re.search(r"@import|url\((?!#)", html)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "src"))


def test_no_stand_in_colour_is_left(complete):
    _, html = complete
    assert not {"#010203", "#040506", "#070809", "#0a0b0c"} & set(re.findall(r"#[0-9a-f]{6}", html))
    assert "currentColor" in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_figures_equal_those_of_manifest_profile_and_study(complete, memory, write_profile):
    folder, html = complete
    values = Page(html).values
    manifest = open_bundle(folder).manifest
    expected = {entry["value"] for level in manifest.levels for entry in level.quality.values()}
    expected |= {x for level in manifest.levels for r in level.parity for x in (r.max_abs_err, r.tolerance)}
    expected |= {float(entry.size_bytes) for entry in manifest.files}
    profile = write_profile(folder)
    expected |= {x for point in profile.points for x in (point.summary.p50_ms, point.summary.p95_ms)}
    expected |= {float(memory.none_bytes), float(memory.deepest_bytes), float(memory.all_bytes)}
    assert expected <= values


def test_a_switch_has_figures_of_its_own(complete, switching):
    page = Page(complete[1])
    expected = {
        figures.metrics[name].value
        for pair in switching.pairs
        for figures in (pair.stays, pair.reprefill, pair.masked)
        for name in ("bits_per_byte", "exact_match")
    }
    assert expected <= page.values
    assert "d1, then d3" in page.words
    assert "d3, then d4" in page.words


def test_without_switches_the_report_says_what_measures_them(write_bundle, tmp_path):
    html = write_report(write_bundle(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "blockexport report bundle --switch-data DATA" in html


def test_speed_is_the_ratio_of_decode_medians(complete):
    _, html = complete
    values = Page(html).values
    assert any(value == pytest.approx(4.31 / 1.31) for value in values)
    assert any(value == pytest.approx(4.31 / 3.31) for value in values)


def test_without_profile_and_study_the_report_says_what_adds_them(write_bundle, tmp_path):
    folder = write_bundle()
    html = write_report(folder, tmp_path / "report.html").read_text(encoding="utf-8")
    text = Page(html).words
    assert "latency, no host was profiled" in text
    assert "blockexport profile bundle" in text
    assert "no study lies in the bundle" in text
    assert "blockexport study MODEL" in text
    assert "no scores lie in the bundle" in text
    assert "Nothing can be said of speed" in text
    # The levels' own quality is plotted all the same.
    assert "depth-figure_1" in html
    assert "latency-figure_1" not in html


def test_without_quality_the_report_says_what_adds_it(write_bundle, write_profile, tmp_path):
    folder = write_bundle(measured=False)
    write_profile(folder)
    text = Page(write_report(folder, tmp_path / "report.html").read_text(encoding="utf-8")).words
    assert "quality against latency, quality was not measured" in text
    assert "the quality of the levels, the build had no data" in text
    assert "--data DATA" in text


def test_memory_that_cannot_be_measured_has_its_reason(write_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(material, "measure_memory", lambda bundle, num_levels: "no <proc> here")
    html = write_report(write_bundle(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "memory, no &lt;proc&gt; here" in html
    assert "memory-figure_1" not in html


def test_scores_alone_give_their_importance(write_bundle, make_study, tmp_path):
    (scores, *_) = make_study().scores
    folder = write_bundle(attached={"scores.json": dump_json(scores.to_json()).encode()})
    html = write_report(folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "importance of 4 blocks by activation" in html
    assert "Hatched blocks (3) are protected" in html
    assert "no study lies in the bundle" in html


def test_agreement_between_tasks_and_halves_is_shown(write_bundle, make_study, tmp_path):
    (scores, *_) = make_study().scores
    other = (-0.5, 1.0, 9.0, float("inf"))
    halves = (scores.scores, other)
    tasks = tuple(
        TaskScores(name, values, scores.stderr, 3, halves) for name, values in zip(("copy", "a<b"), halves, strict=True)
    )
    together = dataclasses.replace(scores, tasks=tasks, halves=halves)
    folder = write_bundle(attached={"scores.json": dump_json(together.to_json()).encode()})
    html = write_report(folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Agreement of scores by activation" in html
    assert '<th scope="row">a&lt;b</th><td>3</td>' in html
    assert html.count(f'<data value="{together.agreement.halves!r}">') >= 5
    _, _, table = html.partition("Importance on each task by activation")
    table, _, _ = table.partition("</table>")
    assert table.count("protected") == 3
    assert f'<th scope="row">2</th><td><data value="{scores.scores[2]!r}">' in table
    assert '<data value="9.0">' in table


def test_a_given_study_is_used(write_bundle, make_study, tmp_path):
    html = write_report(write_bundle(), tmp_path / "report.html", study=make_study(seed=4321)).read_text()
    assert "4321" in html
    assert "All 7 choices as a table" in html


def test_text_from_outside_stays_text(write_bundle, make_study, tmp_path):
    evil = '<script>alert("x")</script>'
    scores = tuple(dataclasses.replace(entry, method=evil) for entry in make_study().scores)
    rows = tuple(dataclasses.replace(row, method=evil) if row.method else row for row in make_study().rows)
    folder = write_bundle(model=evil, strategy=evil, notes=(evil,), tools={evil: evil}, recipe={evil: evil})
    study = make_study(model=evil, scores=scores, rows=rows, evaluator=evil)
    html = write_report(folder, tmp_path / "report.html", study=study).read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert evil in page.words
    assert any(evil in value for name, value in page.attributes if name == "aria-label")


def test_a_profile_of_another_host_is_said_to_be_that(write_bundle, write_profile, tmp_path):
    folder = write_bundle()
    write_profile(folder, host=HostFingerprint.detect().model_copy(update={"cpu": "Some Other CPU"}))
    text = Page(write_report(folder, tmp_path / "report.html").read_text(encoding="utf-8")).words
    assert "latency of this host; what follows was measured on Some Other CPU" in text
    assert "another host than the one that wrote this report" in text


@pytest.mark.parametrize(("p95", "is_busy"), [(1.2, False), (9.0, True)])
def test_a_busy_host_is_said_to_be_that(write_bundle, write_profile, tmp_path, p95, is_busy):
    folder = write_bundle()
    write_profile(folder, p95=p95)
    html = write_report(folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("The host was busy" in html) == is_busy
    assert ("goes on beyond it" in html) == is_busy


def test_failed_parity_leads_the_conclusions(write_bundle, tmp_path):
    folder = write_bundle()
    manifest = open_bundle(folder).manifest
    first = manifest.levels[0]
    failed = first.parity[0].model_copy(update={"passed": False, "max_abs_err": 1.0})
    levels = (first.model_copy(update={"parity": (failed, *first.parity[1:])}), *manifest.levels[1:])
    html = write_report(write_bundle(levels=levels), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 of 6 parity checks failed" in html
    assert html.count("✗ failed") == 1


def test_a_study_or_scores_of_another_model_are_refused(write_bundle, make_study, tmp_path):
    out = tmp_path / "report.html"
    with pytest.raises(ConfigError, match="study is of another model"):
        write_report(write_bundle(), out, study=make_study(model_digest="9" * 64))
    (scores, *_) = make_study().scores
    other = dataclasses.replace(scores, model="9" * 64)
    with pytest.raises(ConfigError, match=r"scores (is|are) of another model"):
        write_report(write_bundle(attached={"scores.json": dump_json(other.to_json()).encode()}), out)
    assert not out.exists()


def test_a_failed_report_leaves_the_old_one(write_bundle, tmp_path, monkeypatch):
    folder, out = write_bundle(), tmp_path / "report.html"
    out.write_text("old")
    (folder / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(IntegrityError):
        write_report(folder, out)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "report.html"]


def test_a_place_that_cannot_be_written_is_said_in_one_line(write_bundle, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(BundleError, match="cannot write"):
        write_report(write_bundle(), tmp_path / "taken")


def test_a_missing_matplotlib_names_the_extra(write_bundle, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailableError, match=r"blockexport\[plot\]"):
        write_report(write_bundle(), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_two_reports_of_one_bundle_are_the_same(complete, switching, tmp_path):
    folder, html = complete
    assert write_report(folder, tmp_path / "again.html", switching=switching).read_text(encoding="utf-8") == html
