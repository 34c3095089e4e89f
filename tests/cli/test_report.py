from pathlib import Path
from typing import Any


def test_the_path_is_that_of_a_page(cli: Any, workspace: Any, tmp_path: Path) -> None:
    done = cli("report", workspace.bundle, "--out", tmp_path / "r.html", "--json")
    assert done.code == 0
    assert done.value == {"path": str(tmp_path / "r.html")}
    assert "<html" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_switches_up_are_measured_on_the_texts_that_are_given(cli: Any, workspace: Any, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    done = cli(
        "report", workspace.bundle, "--out", page, "--switch-data", workspace.data, "--switch-samples", 2, "--json"
    )
    assert done.code == 0
    found = done.value["switching"]
    assert found["num_samples"] == 2
    assert found["pairs"]
    for pair in found["pairs"]:
        assert set(pair["stays"]) == set(pair["reprefill"]) == set(pair["masked"])
        assert pair["stays"]
    assert f"{found['pairs'][0]['before']}, then {found['pairs'][0]['after']}" in page.read_text(encoding="utf-8")


def test_what_is_no_bundle_has_no_report(cli: Any, tmp_path: Path) -> None:
    assert cli("report", tmp_path / "none", "--out", tmp_path / "r.html").code == 2
    assert not (tmp_path / "r.html").exists()
