import pytest

pytest.importorskip("triton")

import torch

from blockexport_kernels.triton import report
from blockexport_kernels.triton.speed import timing
from blockexport_kernels.triton.speed.timing import Work, measure

CPU = torch.device("cpu")


def _refuses(_: torch.Tensor) -> torch.Tensor:
    msg = "no such shape\nand more words"
    raise RuntimeError(msg)


@pytest.fixture
def work() -> Work:
    contenders = {
        "ours": lambda numbers: numbers + 0.0,
        "near": lambda numbers: numbers * (1 + 2**-12),
        "refusing": _refuses,
    }
    return Work("two numbers", 4000, lambda seed: torch.tensor([3.0 + seed, 4.0]), contenders)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Microseconds of a pass over both inputs by whom it is made; set by a test."""
    times = {"copy": 2 * timing._COPY_BYTES / 1e3, "ours": 8.0, "near": 16.0}  # a copy at 1 KB/us, on one input
    monkeypatch.setattr(timing, "_num_copies", lambda *_: 2)
    monkeypatch.setattr(timing, "_copy", lambda _: None)

    def capture(run, inputs):
        if run is None:
            return timing._Captured("copy", [None])
        outputs = [run(one) for one in inputs]
        return timing._Captured("ours" if torch.equal(outputs[0], inputs[0]) else "near", outputs)

    monkeypatch.setattr(timing, "_capture", capture)
    monkeypatch.setattr(timing, "_time_once", lambda captured: times[captured.graph])
    return times


def test_times_are_of_one_call_and_beside_a_copy(work: Work, clock) -> None:
    row = measure(work, CPU, rounds=3)
    assert row["us"]["ours"] == {"median": 4.0, "min": 4.0, "max": 4.0}
    assert row["ratio_to_ours"] == {"near": {"median": 2.0, "min": 2.0, "max": 2.0}}
    assert row["copy_gb_s"]["median"] == 1.0
    assert row["share_of_copy"]["ours"]["median"] == 1.0
    assert row["share_of_copy"]["near"]["median"] == 0.5
    assert row["fastest"] == "near"
    assert row["difference"] == {"ours": 0.0, "near": pytest.approx(2**-12, rel=1e-3)}
    assert row["not_run"] == {"refusing": "RuntimeError: no such shape"}


@pytest.mark.parametrize(("near_us", "earned"), [(16.0, True), (8.0, False), (4.0, False)])
def test_a_kernel_that_is_not_faster_has_not_earned_its_place(work: Work, clock, near_us: float, earned: bool) -> None:
    clock["near"] = near_us
    result = report._speed(lambda _device: [work], CPU, 3)
    assert result["status"] == "pass"
    assert result["metrics"]["earned"] is earned
    assert result["why"] == ("" if earned else "two numbers: not always faster than near")


def test_a_kernel_without_anything_to_compare_it_with_has_not_either(clock) -> None:
    work = Work("alone", 4000, lambda seed: torch.tensor([3.0, 4.0]), {"ours": lambda numbers: numbers + 0.0})
    assert report._speed(lambda _device: [work], CPU, 3)["metrics"]["earned"] is False


def test_contenders_that_compute_something_else_fail(clock) -> None:
    contenders = {"ours": lambda numbers: numbers + 0.0, "near": lambda numbers: numbers * 1.1}
    work = Work("two numbers", 4000, lambda seed: torch.tensor([3.0, 4.0]), contenders)
    result = report._speed(lambda _device: [work], CPU, 3)
    assert result["status"] == "fail"
    assert result["why"].startswith("two numbers: near differs by")


def test_one_question_that_breaks_is_an_answer() -> None:
    result = report._guarded("triton.some.speed", lambda: _refuses(torch.zeros(1)))
    assert result["status"] == "fail"
    assert result["why"].startswith("RuntimeError: no such shape")
