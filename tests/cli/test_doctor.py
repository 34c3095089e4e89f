from importlib import util
from typing import Any

import pytest

from blockexport.cli import doctor
from blockexport.core.hardware import HostFingerprint
from blockexport.errors import BackendUnavailableError


def test_it_lists_what_is_installed(cli: Any) -> None:
    done = cli("doctor", "--json")
    assert done.code == 0
    assert done.value["backends"] == [{"name": "onnxruntime", "build": True, "run": True, "why": ""}]
    assert done.value["host"] == HostFingerprint.detect().to_json()
    assert "onnxruntime" in cli("doctor").out


def test_a_missing_build_package_is_named(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    (entry,) = cli("doctor", "--json").value["backends"]
    assert (entry["build"], entry["run"]) == (False, True)
    assert "onnxscript" in entry["why"]


def test_a_runtime_that_cannot_be_imported_says_why(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        msg = "both are installed"
        raise BackendUnavailableError(msg)

    monkeypatch.setattr("blockexport.backends.onnxruntime.session.import_onnxruntime", refuse)
    (entry,) = cli("doctor", "--json").value["backends"]
    assert (entry["build"], entry["run"]) == (False, False)
    assert "both are installed" in entry["why"]
