from pathlib import Path
from typing import Any


def test_the_path_is_that_of_a_page(cli: Any, workspace: Any, tmp_path: Path) -> None:
    done = cli("report", workspace.bundle, "--out", tmp_path / "r.html", "--json")
    assert done.code == 0
    assert done.value == {"path": str(tmp_path / "r.html")}
    assert "<html" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_what_is_no_bundle_has_no_report(cli: Any, tmp_path: Path) -> None:
    assert cli("report", tmp_path / "none", "--out", tmp_path / "r.html").code == 2
    assert not (tmp_path / "r.html").exists()
