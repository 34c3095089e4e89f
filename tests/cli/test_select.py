import json
from pathlib import Path
from typing import Any

import pytest

SCORES = {
    "method": "m",
    "scores": [9.0, 5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0],
    "stderr": [0.0] * 8,
    "model": "abc",
}


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(SCORES))
    return path


def test_the_document_is_the_file(workspace: Any) -> None:
    value = workspace.select.value
    assert value == json.loads(workspace.ladder.read_text())
    assert [level["depth"] for level in value["levels"]] == [4, 3, 2]
    for level in value["levels"]:
        assert level["name"] == f"d{level['depth']}"
        assert sorted(level["kept"] + level["skipped"]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("depths", "expected"), [("auto", [8, 6, 4, 2]), ("8,3", [8, 3]), ("1.0,0.5", [8, 4]), ("2", [2])]
)
def test_depths(cli: Any, scores: Path, tmp_path: Path, depths: str, expected: list[int]) -> None:
    done = cli("select", scores, "--depths", depths, "--out", tmp_path / "l.json", "--json")
    assert [level["depth"] for level in done.value["levels"]] == expected
    assert done.value["levels"][-1]["kept"] == sorted(
        sorted(range(8), key=lambda i: -SCORES["scores"][i])[: expected[-1]]
    )


def test_the_minimum_depth_limits_auto(cli: Any, scores: Path, tmp_path: Path) -> None:
    done = cli("select", scores, "--min-depth", "4", "--out", tmp_path / "l.json", "--json")
    assert [level["depth"] for level in done.value["levels"]] == [8, 6, 4]


def test_threshold_needs_no_depths(cli: Any, scores: Path, tmp_path: Path) -> None:
    done = cli(
        "select", scores, "--strategy", "threshold", "--threshold", "0.5,0.7", "--out", tmp_path / "l.json", "--json"
    )
    assert [level["kept"] for level in done.value["levels"]] == [[0, 1, 6, 7], [0, 7]]


def test_bad_input_exits_2_and_writes_nothing(cli: Any, scores: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    not_a_number = tmp_path / "nan.json"
    not_a_number.write_text(json.dumps(SCORES | {"scores": [float("nan")] * 8}))
    for arguments in (
        (tmp_path / "none.json",),
        (damaged,),
        (not_a_number,),
        (scores, "--depths", "9"),
        (scores, "--depths", "0"),
        (scores, "--depths", "many"),
        (scores, "--strategy", "luck"),
        (scores, "--strategy", "greedy"),
        (scores, "--strategy", "beam"),
        (scores, "--beam-width", "2"),
        (scores, "--strategy", "threshold"),
        (scores, "--budget-ms", "5"),
        (scores, "--profile", tmp_path),
    ):
        done = cli("select", *arguments, "--out", tmp_path / "l.json")
        assert done.code == 2, arguments
        assert done.err.count("\n") == 1, arguments
    assert not (tmp_path / "l.json").exists()


def test_a_score_map_may_leave_out_the_last_blocks(cli: Any, tmp_path: Path) -> None:
    """The seed's published file: blocks 1 to 14 of 16."""
    path = tmp_path / "layer_importance_scores.json"
    path.write_text(json.dumps({"importance_scores": {str(i): 0.01 * i for i in range(1, 15)}}))
    options = ("--depths", "16,12", "--out", tmp_path / "l.json", "--json")
    done = cli("select", path, "--num-blocks", "16", *options)
    assert done.value["num_blocks"] == 16
    assert done.value["levels"][1]["skipped"] == [1, 2, 3, 4]
    assert cli("select", path, "--num-blocks", "8", *options).code == 2


def test_a_place_that_cannot_hold_the_result_is_refused_first(cli: Any, scores: Path, tmp_path: Path) -> None:
    for place in (tmp_path, scores / "ladder.json"):
        done = cli("select", scores, "--depths", "4", "--out", place)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "nothing can be written to" in done.err


def test_greedy_needs_data_of_its_own_for_a_model_of_the_users(cli: Any, workspace: Any, tmp_path: Path) -> None:
    options = ("--strategy", "greedy", "--depths", "2", "--model", workspace.model, "--out", tmp_path / "l.json")
    done = cli("select", workspace.scores, *options)
    assert done.code == 2
    assert "give model and data" in done.err


def test_greedy_measures_the_model(cli: Any, workspace: Any, tmp_path: Path) -> None:
    options = ("--strategy", "greedy", "--depths", "4,2", "--out", tmp_path / "l.json", "--json")
    done = cli("select", workspace.scores, *options, "--model", workspace.model, "--data", workspace.data)
    assert [level["depth"] for level in done.value["levels"]] == [4, 2]
    assert done.value["strategy"] == "greedy"
    assert any("removed in order" in note for note in done.value["notes"])


def test_a_beam_of_one_on_the_command_line_is_greedy(cli: Any, workspace: Any, tmp_path: Path) -> None:
    options = ("--depths", "3,1", "--model", workspace.model, "--data", workspace.data, "--out", tmp_path / "l.json")
    greedy, narrow, wide = (
        cli("select", workspace.scores, *options, "--json", "--strategy", *strategy).value
        for strategy in (("greedy",), ("beam", "--beam-width", "1", "--beam-depth", "2"), ("beam",))
    )
    assert narrow["levels"] == greedy["levels"]
    assert [level["depth"] for level in wide["levels"]] == [3, 1]
    # One block at first, then up to three combinations of two blocks less.
    assert "10 combinations measured, 3 kept at each size" in wide["notes"]


@pytest.mark.usefixtures("profiled")
def test_a_budget_gives_the_deepest_depth_that_fits(cli: Any, workspace: Any, tmp_path: Path) -> None:
    size = ("--prompt-tokens", "16", "--new-tokens", "4")
    decision = cli("plan", workspace.bundle, "--budget-ms", "1e9", *size, "--json").value
    bounds = {entry["depth"]: entry["bound_ms"] for entry in [decision, *decision["alternatives"]]}
    options = ("--profile", workspace.bundle, *size, "--out", tmp_path / "l.json", "--json")
    between = str(bounds[3] * 1.0001)
    done = cli("select", workspace.scores, "--budget-ms", f"{between},1e9", *options)
    wanted = [4] if bounds[4] <= float(between) else [4, 3]
    assert [level["depth"] for level in done.value["levels"]] == wanted
    assert cli("select", workspace.scores, "--budget-ms", "1e-6", *options).code == 2


def test_a_profile_of_another_model_is_refused(cli: Any, workspace: Any, scores: Path, tmp_path: Path) -> None:
    done = cli("select", scores, "--budget-ms", "5", "--profile", workspace.bundle, "--out", tmp_path / "l.json")
    assert done.code == 2
    assert "scores are not of" in done.err
