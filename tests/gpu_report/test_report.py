"""The frame of the report: what is flushed when, what counts as what, and what a host without a GPU gets."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from blockexport.errors import BackendUnavailableError
from blockexport.gpu_report import report as module
from blockexport.gpu_report import worker
from blockexport.gpu_report.__main__ import main
from blockexport.gpu_report.checks import CHECKS
from blockexport.gpu_report.finding import Check, Finding, verdict
from blockexport.gpu_report.report import LIMIT_S, Report, run_checks

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([], 2),
        (["not_run"], 2),
        (["not_run", "pass"], 0),
        (["pass", "fail", "not_run"], 1),
    ],
)
def test_the_exit_code_says_what_became_of_it(statuses: list, code: int, tmp_path: Path) -> None:
    report = Report(tmp_path / "r.json")
    for status in statuses:
        report.add(Finding("x", "gpu", status))
    assert report.exit_code == read(tmp_path / "r.json")["summary"]["exit_code"] == code


def test_the_file_holds_each_finding_as_soon_as_there_is_one(tmp_path: Path) -> None:
    report = Report(tmp_path / "r.json")
    assert read(tmp_path / "r.json")["checks"] == []
    report.add(Finding("cpu-only", "cpu", "pass", metrics={"ratio": float("inf")}))
    report.add(verdict("broken", "gpu", ["off by 1", "late"], {}))
    found = read(tmp_path / "r.json")
    assert [(check["id"], check["status"], check["why"]) for check in found["checks"]] == [
        ("cpu-only", "pass", ""),
        ("broken", "fail", "off by 1; late"),
    ]
    assert found["summary"]["gpu_checks_run"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_what_passes_on_a_processor_is_not_counted_as_a_check_on_a_gpu(tmp_path: Path) -> None:
    report = Report(tmp_path / "r.json")
    report.add(Finding("a", "cpu", "pass"))
    report.add(Finding("b", "gpu", "not_run"))
    assert report.to_json()["summary"]["gpu_checks_run"] == 0


def _findings(error: Exception | None) -> Iterator[Finding]:
    yield Finding("x:first", "cpu", "pass")
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "pass"),
        (BackendUnavailableError("no TensorRT"), "not_run"),
        (ImportError("no TensorRT"), "not_run"),
        (RuntimeError("no TensorRT"), "fail"),
    ],
)
def test_what_is_missing_is_no_failure_and_what_breaks_is(error: Exception | None, status: str) -> None:
    output = io.StringIO()
    worker.run(Check("x", "cpu", 9, lambda: _findings(error)), output)
    first, *rest = [json.loads(line) for line in output.getvalue().splitlines()]
    assert first["status"] == "pass"
    assert [finding["status"] for finding in rest] == ([] if error is None else [status])
    assert all("no TensorRT" in finding["why"] for finding in rest)


@NO_GPU
def test_without_a_gpu_its_checks_do_not_even_begin() -> None:
    output = io.StringIO()
    worker.run(Check("x", "gpu", 9, lambda: pytest.fail("it began")), output)
    (finding,) = (json.loads(line) for line in output.getvalue().splitlines())
    assert finding["status"] == "not_run"
    # In the loader's own words.
    assert "libcuda" in finding["why"]


def test_when_time_is_over_the_rest_is_not_run(tmp_path: Path) -> None:
    report = Report(tmp_path / "r.json")
    run_checks(report, CHECKS, limit_s=0)
    assert {(finding.id, finding.status) for finding in report.findings} == {(c.name, "not_run") for c in CHECKS}


def test_a_check_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    report = Report(tmp_path / "r.json")
    run_checks(report, [Check("tensorrt", "gpu", 0.01, lambda: iter(()))])
    (finding,) = report.findings
    assert (finding.status, "ended after" in finding.why) == ("not_run", True)


def test_a_process_that_dies_is_a_failure(tmp_path: Path) -> None:
    report = Report(tmp_path / "r.json")
    run_checks(report, [Check("no-such-check", "cpu", 120, lambda: iter(()))])
    (finding,) = report.findings
    assert (finding.status, "ended with 1" in finding.why) == ("fail", True)


@NO_GPU
def test_a_host_without_a_gpu_gets_a_whole_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--out", str(tmp_path / "r.json"), "--only", "tensorrt"])
    found = read(tmp_path / "r.json")
    assert code == 2
    assert [(check["id"], check["status"]) for check in found["checks"]] == [("tensorrt", "not_run")]
    assert found["host"]["gpu"] is None
    assert "libcuda" in found["host"]["why_no_gpu"]
    assert "torch" in found["host"]["packages"]
    assert "not_run" in capsys.readouterr().out


def test_every_check_can_be_loaded_and_asks_for_a_gpu_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(worker, "find_gpu", lambda: None)
    for check in CHECKS:
        if check.tier == "gpu" and not torch.cuda.is_available():
            output = io.StringIO()
            worker.run(check, output)
            (finding,) = map(json.loads, output.getvalue().splitlines())
            assert finding["status"] == "not_run", finding
            assert "BackendUnavailableError" in finding["why"], finding


def test_the_kernels_own_report_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from blockexport.gpu_report.checks import triton_kernels

    monkeypatch.setattr(triton_kernels, "require_torch_cuda", lambda: None)
    monkeypatch.setattr(triton_kernels.torch, "device", lambda _name: SimpleNamespace(type="cpu"))
    found = list(triton_kernels.run())
    # On a processor none is timed; numerics are looked at if Triton interprets.
    assert {finding.id for finding in found} == {
        f"triton.{kernel}.{question}"
        for kernel in ("decode_attention", "residual_rmsnorm", "kv_backfill", "dequant_gemv")
        for question in ("numerics", "speed")
    }
    assert {finding.tier for finding in found} == {"gpu"}
    assert "pass" not in {finding.status for finding in found if finding.id.endswith("speed")}


def test_all_checks_fit_into_eight_minutes_and_have_names_of_their_own() -> None:
    assert LIMIT_S < 480
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert module.LIMIT_S == LIMIT_S
