import json
from pathlib import Path
from typing import Any


def test_the_document_is_the_file(workspace: Any) -> None:
    value = workspace.score.value
    assert workspace.score.code == 0
    assert value == json.loads(workspace.scores.read_text())
    assert {"method", "scores", "stderr", "protected", "model", "data", "seed"} <= value.keys()
    assert value["method"] == "loss_drop"
    assert len(value["scores"]) == 4
    assert not workspace.scores.with_name("scores.json.unfinished").exists()


def test_protected_blocks_score_infinity(cli: Any, workspace: Any, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    options = ("--data", workspace.data, "--method", "activation", "--protect", "0,3", "--out", out)
    done = cli("score", workspace.model, *options, "--json")
    assert done.value["protected"] == [0, 3]
    assert done.value["scores"][3] == float("inf")
    rows = [line.split() for line in cli("score", workspace.model, *options).out.splitlines()]
    assert [row[0] for row in rows if row[1:2] == ["protected"]] == ["0", "3"]


def test_a_model_without_data_is_bad_input(cli: Any, workspace: Any, tmp_path: Path) -> None:
    done = cli("score", workspace.model, "--out", tmp_path / "s.json")
    assert done.code == 2
    assert "--data" in done.err
    assert not (tmp_path / "s.json").exists()


def test_bad_input_exits_2_in_one_line(cli: Any, workspace: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for arguments in (
        (tmp_path / "nowhere", "--data", workspace.data),
        (workspace.model, "--data", tmp_path / "none.jsonl"),
        (workspace.model, "--data", empty),
        (workspace.model, "--data", workspace.data, "--method", "guess"),
        (workspace.model, "--data", workspace.data, "--protect", "9"),
        (workspace.model, "--data", workspace.data, "--protect", "x"),
        ("demo:nothing",),
    ):
        done = cli("score", *arguments, "--out", tmp_path / "s.json")
        assert done.code == 2, arguments
        assert [line for line in done.err.splitlines() if line.startswith("blockexport: ")], arguments
        assert "Traceback" not in done.err
    assert not (tmp_path / "s.json").exists()
