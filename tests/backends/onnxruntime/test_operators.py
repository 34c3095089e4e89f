from pathlib import Path

import pytest

from blockexport.backends.onnxruntime import operators as module
from blockexport.backends.onnxruntime.operators import STOCK, Operators, choose_operators, native_library
from blockexport.errors import BackendUnavailableError, ConfigError


def test_stock_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "native_library", None)
    assert choose_operators("stock") == STOCK


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match="auto, native, stock"):
        choose_operators("fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(("path", "wanted"), [("avx512", "native"), ("avx2", "ort"), ("scalar", "ort")])
def test_auto_takes_ours_where_they_are_faster(path: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "native_library", lambda: Path("lib.so"))
    monkeypatch.setattr(module, "path_of", lambda _library: path)
    assert choose_operators("auto").target == wanted
    assert choose_operators("native") == Operators("native", Path("lib.so"))


def test_without_a_compiler_auto_does_without_and_native_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setenv("BLOCKEXPORT_CACHE", str(tmp_path))
    assert choose_operators("auto") == STOCK
    with pytest.raises(BackendUnavailableError, match="compiler"):
        choose_operators("native")


def test_a_cache_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLOCKEXPORT_CACHE", str(tmp_path / "file"))
    with pytest.raises(BackendUnavailableError, match="BLOCKEXPORT_CACHE"):
        native_library()
