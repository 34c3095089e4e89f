"""Operators that this host compiled are trusted once they gave the recorded answers."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from blockexport.backends.onnxruntime.operators import Operators, choose_operators
from blockexport.bundle.layout import PARITY_FILE
from blockexport.bundle.reader import Bundle, open_bundle
from blockexport.errors import BackendUnavailableError
from blockexport.runtime import load
from blockexport.runtime import proof as module
from blockexport.runtime.engines import Engines
from blockexport.runtime.proof import check_level, proof_of, recorded_cases

pytestmark = pytest.mark.slow


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return open_bundle(bundle_folder)


@pytest.fixture(scope="module")
def native() -> Operators:
    try:
        return choose_operators("native")
    except BackendUnavailableError as error:
        pytest.skip(str(error))


def test_right_answers_are_trusted(bundle: Bundle, native: Operators) -> None:
    engines = Engines.of_bundle(bundle, threads=1, operators=native, prove=proof_of(bundle))
    for level in engines.names:
        engines.decoder(level)
        assert engines.operators(level) == "native"
        records = check_level(engines, level, recorded_cases(bundle.folder / PARITY_FILE)[level])
        assert {record.check for record in records} == {"prefill", "decode", "padded", "chunked"}
        assert all(record.passed for record in records)


def test_wrong_answers_bring_the_stock_operators_back(
    bundle: Bundle, native: Operators, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cases = recorded_cases(bundle.folder / PARITY_FILE)
    wrong = {name: tuple(replace(case, expected=case.expected + 1) for case in of) for name, of in cases.items()}
    monkeypatch.setattr(module, "recorded_cases", lambda _path: wrong)
    engines = Engines.of_bundle(bundle, threads=1, operators=native, prove=proof_of(bundle))
    with caplog.at_level(logging.WARNING):
        engines.decoder("d3")
    assert engines.operators("d3") == "stock"
    assert "level d3: native operators do not give the recorded answers" in caplog.text
    records = check_level(engines, "d3", cases["d3"])
    assert all(record.passed for record in records)


def test_a_native_graph_that_does_not_open_is_passed_over(
    bundle_folder: Path, native: Operators, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "bundle"))
    runtime = load(folder, threads=1, operators="native")
    (folder / "d3.native.onnx").write_bytes(b"no graph")
    with caplog.at_level(logging.WARNING):
        tokens = runtime.generate([3, 1, 4], 4, level="d3", stop_tokens=[]).tokens
    assert runtime.engines.operators("d3") == "stock"
    assert "cannot open d3.native.onnx" in caplog.text
    assert tokens == load(bundle_folder, threads=1).generate([3, 1, 4], 4, level="d3", stop_tokens=[]).tokens


def test_a_level_without_recorded_answers_is_not_trusted(
    bundle: Bundle, native: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "recorded_cases", lambda _path: {})
    engines = Engines.of_bundle(bundle, threads=1, operators=native, prove=proof_of(bundle))
    engines.decoder("d4")
    assert engines.operators("d4") == "stock"


def test_both_kinds_of_operators_generate_the_same(bundle_folder: Path, native: Operators) -> None:
    tokens = [
        load(bundle_folder, threads=1, operators=kind).generate([3, 1, 4, 1, 5], 12, level="d3", stop_tokens=[]).tokens
        for kind in ("native", "stock")
    ]
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 12
