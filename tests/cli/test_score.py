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


def test_tasks_and_halves_are_compared(cli: Any, workspace: Any, tmp_path: Path) -> None:
    data, out = tmp_path / "tasks.jsonl", tmp_path / "s.json"
    asked = [{"prompt": f"w{i} w2", "answer": f"w{i + 3}", "task": "odd" if i % 2 else "even"} for i in range(12)]
    data.write_text("".join(json.dumps(entry) + "\n" for entry in asked), encoding="utf-8")
    options = ("--data", data, "--method", "loss_drop", "--out", out)
    shown = cli("score", workspace.model, *options).out
    value = json.loads(out.read_text())
    assert [(task["name"], task["num_samples"]) for task in value["tasks"]] == [("even", 6), ("odd", 6)]
    assert value["spearman"]["tasks"]["odd"]["others"]["even"] == value["spearman"]["tasks"]["even"]["others"]["odd"]
    assert f"Spearman between the two halves of all samples: {value['spearman']['halves']:.4g}" in shown
    head = next(line for line in shown.splitlines() if "its two halves" in line)
    assert head.split()[-2:] == ["even", "odd"]
    ladder = tmp_path / "l.json"
    alone = cli("select", out, "--task", "odd", "--depths", "1", "--out", ladder, "--json").value
    (level,) = alone["levels"]
    assert level["kept"] == [max(range(4), key=lambda block: value["tasks"][1]["scores"][block])]
    assert cli("select", out, "--task", "none", "--depths", "1", "--out", ladder).code == 2


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
