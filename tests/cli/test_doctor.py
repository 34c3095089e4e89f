from importlib import util
from typing import Any

import onnxruntime
import pytest

from blockexport.cli import doctor
from blockexport.core.hardware import HostFingerprint
from blockexport.errors import BackendUnavailableError


def test_it_lists_what_is_installed(cli: Any) -> None:
    done = cli("doctor", "--json")
    assert done.code == 0
    first = done.value["backends"][0]
    assert first == {"name": "onnxruntime", "build": True, "run": True, "why": ""}
    assert [entry["name"] for entry in done.value["backends"]] == ["onnxruntime", "onnxruntime-cuda", "aotinductor"]
    assert done.value["host"] == HostFingerprint.detect().to_json()
    assert "onnxruntime" in cli("doctor").out


def test_a_missing_build_package_is_named(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    entry = cli("doctor", "--json").value["backends"][0]
    assert (entry["build"], entry["run"]) == (False, True)
    assert "onnxscript" in entry["why"]


def test_a_runtime_that_cannot_be_imported_says_why(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        msg = "both are installed"
        raise BackendUnavailableError(msg)

    monkeypatch.setattr("blockexport.backends.onnxruntime.session.import_onnxruntime", refuse)
    entry = cli("doctor", "--json").value["backends"][0]
    assert (entry["build"], entry["run"]) == (False, False)
    assert "both are installed" in entry["why"]


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has the CUDA provider"
)
def test_a_missing_provider_names_the_package_that_has_it(cli: Any) -> None:
    entry = cli("doctor", "--json").value["backends"][1]
    assert entry["run"] is False
    assert "blockexport[ort-gpu]" in entry["why"]


def test_two_packages_of_onnx_runtime_are_said_in_one_line(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockexport.backends.onnxruntime.session._is_installed", lambda _name: True)
    for entry in cli("doctor", "--json").value["backends"][:2]:
        assert entry["run"] is False
        assert "onnxruntime and onnxruntime-gpu are both installed" in entry["why"]
        assert "\n" not in entry["why"]


def test_without_a_compiler_packages_run_and_are_not_built(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    entry = cli("doctor", "--json").value["backends"][2]
    assert (entry["build"], entry["run"]) == (False, True)
    assert "no-such-compiler" in entry["why"]
