import json
from pathlib import Path
from typing import Any

import pytest

from blockexport.bundle.reader import open_bundle


def test_the_document_says_what_was_built(workspace: Any) -> None:
    value = workspace.build.value
    assert workspace.build.code == 0
    bundle = open_bundle(workspace.bundle)
    assert value["weights_bytes"] == bundle.manifest.weights.size_bytes
    assert value["seconds"] > 0
    assert not value["unchanged"]
    assert [level["name"] for level in value["levels"]] == ["d4", "d3", "d2"]
    for level in value["levels"]:
        assert level["kept"] == list(bundle.level(level["name"]).kept)
        engines = [(engine["backend"], engine["target"]) for engine in level["engines"]]
        assert engines == [("onnxruntime", "ort"), ("onnxruntime", "native")]
        assert all(record["passed"] for record in level["parity"])
        assert level["quality"]["bits_per_byte"]["value"] > 0


def test_scores_and_ci_files_are_kept(workspace: Any) -> None:
    assert json.loads((workspace.bundle / "scores.json").read_text()) == json.loads(workspace.scores.read_text())
    assert "| d3 | 3 |" in (workspace.folder / "bundle.summary.md").read_text()
    assert 'failures="0"' in (workspace.folder / "bundle.junit.xml").read_text()


@pytest.mark.slow
def test_a_missed_quality_leaves_no_bundle_and_says_why(cli: Any, workspace: Any, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    arguments = ("--ladder", workspace.ladder, "--data", workspace.data, "--no-cache", "--out", out)
    done = cli("build", workspace.model, *arguments, "--min-quality", "bits_per_byte=0.001", "--json")
    assert done.code == 3
    assert done.value["error"]["type"] == "QualityError"
    assert "bits_per_byte" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.junit.xml", "bundle.summary.md"]
    assert 'failures="3"' in (tmp_path / "bundle.junit.xml").read_text()


def test_bad_input_exits_2_and_writes_nothing(cli: Any, workspace: Any, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.json"
    foreign.write_text(json.dumps(json.loads(workspace.ladder.read_text()) | {"model": "f" * 64}))
    other = tmp_path / "other-scores.json"
    other.write_text(json.dumps(json.loads(workspace.scores.read_text()) | {"model": "f" * 64}))
    out = tmp_path / "bundle"
    good = ("--ladder", workspace.ladder)
    for arguments in (
        (workspace.model, "--out", out),
        (workspace.model, *good),
        (workspace.model, "--ladder", tmp_path / "none.json", "--out", out),
        (workspace.model, "--ladder", foreign, "--out", out),
        (workspace.model, *good, "--scores", other, "--out", out),
        (workspace.model, *good, "--backend", "abacus", "--out", out),
        (workspace.model, *good, "--min-quality", "accuracy", "--out", out),
        (workspace.model, *good, "--max-build-seconds", "0", "--out", out),
        (tmp_path / "nowhere", *good, "--out", out),
        ("demo:digits-vit", *good, "--out", out),
        (tmp_path / "none.toml",),
        (tmp_path / "none.toml", *good),
    ):
        done = cli("build", *arguments, "--no-cache")
        assert done.code == 2, (arguments, done)
        assert "Traceback" not in done.err
    assert not out.exists()
