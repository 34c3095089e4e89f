from pathlib import Path

import pytest

from blockexport.errors import DataError, ModelSupportError
from blockexport.pipeline.fingerprint import code_digest, data_digest, digest_value, model_digest, tool_versions


def write_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_model_is_known_by_content_not_by_place(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "a"), write_model(tmp_path / "b")
    before = model_digest(first)
    assert model_digest(second) == before
    (second / "README.md").write_text("words")
    assert model_digest(second) == before
    (second / "model.safetensors").write_bytes(b"weightz")
    assert model_digest(second) != before


def test_renaming_a_file_changes_the_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a")
    before = model_digest(folder)
    (folder / "config.json").rename(folder / "configuration.json")
    assert model_digest(folder) != before


def test_a_demo_is_a_model_and_its_data_a_name() -> None:
    assert len(model_digest("demo:digits-vit")) == 64
    assert data_digest("demo:digits-vit") == "demo:digits-vit"
    assert data_digest(None) == ""


def test_data_are_known_by_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = data_digest(path)
    path.write_text("two")
    assert data_digest(path) != before
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "deep" / "b.txt").write_text("x")
    before = data_digest(tmp_path / "texts")
    (tmp_path / "texts" / "deep" / "b.txt").write_text("y")
    assert data_digest(tmp_path / "texts") != before


def test_what_is_not_there_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ModelSupportError):
        model_digest(tmp_path / "none")
    with pytest.raises(ModelSupportError):
        model_digest("demo:none")
    with pytest.raises(DataError):
        data_digest(tmp_path / "none.txt")


def test_values_are_known_by_content() -> None:
    assert digest_value({"a": [1, 2.0]}) == digest_value({"a": [1, 2.0]})
    assert digest_value({"a": 1}) != digest_value({"a": 2})


def test_tools_name_what_a_build_rests_on() -> None:
    assert {"python", "torch", "transformers", "onnxruntime", "numpy"} <= tool_versions().keys()
    assert len(code_digest()) == 64
