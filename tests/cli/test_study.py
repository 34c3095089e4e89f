import json
from pathlib import Path
from typing import Any

import pytest

from blockexport.core.study import Study


@pytest.fixture(scope="session")
def studied(cli: Any, workspace: Any) -> Any:
    data = ("--data", workspace.data, "--test-data", workspace.data)
    out = workspace.folder / "study.json"
    return cli("study", workspace.model, *data, "--depths", "2", "--beam-width", "2", "--out", out, "--json")


def test_the_document_is_the_file(studied: Any, workspace: Any) -> None:
    assert studied.code == 0
    assert studied.value == json.loads((workspace.folder / "study.json").read_text())
    rows = Study.from_json(studied.value).rows
    assert {row.strategy for row in rows} >= {"full", "top_k", "sequential", "greedy", "beam"}
    assert {row.depth for row in rows} == {4, 2}


@pytest.mark.slow
def test_a_study_travels_with_a_bundle_of_its_model(cli: Any, studied: Any, workspace: Any, tmp_path: Path) -> None:
    study = workspace.folder / "study.json"
    options = ("--ladder", workspace.ladder, "--study", study, "--no-cache", "--out", tmp_path / "b")
    assert cli("build", workspace.model, *options).code == 0
    assert json.loads((tmp_path / "b" / "study.json").read_text()) == studied.value
    other = tmp_path / "other.json"
    other.write_text(json.dumps(studied.value | {"model": studied.value["model"] | {"digest": "f" * 64}}))
    refused = cli("build", workspace.model, *options, "--study", other)
    assert refused.code == 2
    assert "another model" in refused.err


def test_a_model_without_data_is_bad_input(cli: Any, workspace: Any, tmp_path: Path) -> None:
    done = cli("study", workspace.model, "--data", workspace.data, "--out", tmp_path / "s.json")
    assert done.code == 2
    assert "--test-data" in done.err
