import math

import pytest

from blockexport.bundle.manifest import ParityRecord
from blockexport.core.quality import MetricValue, Quality
from blockexport.errors import AuditError, BuildBudgetError, ConfigError, ParityError, QualityError
from blockexport.pipeline.gates import GateKeeper, Gates


def record(*, passed: bool) -> ParityRecord:
    return ParityRecord(check="decode", max_abs_err=1.0, tolerance=0.5, tokens_equal=passed, passed=passed)


def quality(**figures: float) -> Quality:
    return Quality({name: MetricValue(value, 0.1, 9, name != "bits_per_byte") for name, value in figures.items()})


def test_nothing_wrong_passes() -> None:
    keeper = GateKeeper(Gates({"accuracy": 0.9}, 10.0), clock=iter([0, 9_000_000_000, 9_000_000_000]).__next__)
    keeper.parity("d3", [record(passed=True)])
    keeper.audit("d3", [])
    keeper.quality("d3", quality(accuracy=0.9))
    keeper.duration()
    keeper.enforce()
    assert [(result.gate, result.passed) for result in keeper.results] == [
        ("parity:decode", True),
        ("audit", True),
        ("quality:accuracy", True),
        ("duration", True),
    ]


def test_the_first_failure_is_raised_and_the_others_are_counted() -> None:
    keeper = GateKeeper(Gates())
    keeper.audit("d3", ["a weight", "a node"])
    keeper.parity("d2", [record(passed=False), record(passed=True)])
    with pytest.raises(AuditError, match=r"a weight; a node \(and 1 more gates failed\); no bundle was written"):
        keeper.enforce()


def test_parity_fails_alone() -> None:
    keeper = GateKeeper(Gates())
    keeper.parity("d2", [record(passed=False)])
    with pytest.raises(ParityError, match=r"max abs error 1, allowed 0\.5, greedy tokens differ"):
        keeper.enforce()


@pytest.mark.parametrize(
    ("demand", "found", "passes"),
    [
        ({"accuracy": 0.9}, {"accuracy": 0.89}, False),
        ({"bits_per_byte": 1.6}, {"bits_per_byte": 1.61}, False),
        ({"bits_per_byte": 1.6}, {"bits_per_byte": 1.6}, True),
        ({"accuracy": 0.9, "bits_per_byte": 1.6}, {"accuracy": 0.95, "bits_per_byte": 1.7}, False),
    ],
)
def test_quality_is_held_to_its_direction(demand: dict[str, float], found: dict[str, float], passes: bool) -> None:
    keeper = GateKeeper(Gates(demand))
    keeper.quality("d2", quality(**found))
    if passes:
        keeper.enforce()
    else:
        with pytest.raises(QualityError):
            keeper.enforce()


@pytest.mark.parametrize("found", [None, quality(bits_per_byte=1.0)])
def test_a_metric_that_was_not_measured_fails(found: Quality | None) -> None:
    keeper = GateKeeper(Gates({"accuracy": 0.1}))
    keeper.quality("d2", found)
    with pytest.raises(QualityError, match="accuracy was not measured"):
        keeper.enforce()


def test_a_build_that_took_too_long() -> None:
    keeper = GateKeeper(Gates(max_build_seconds=1.0), clock=iter([0, 2_000_000_000, 2_000_000_000]).__next__)
    keeper.duration()
    with pytest.raises(BuildBudgetError, match=r"2\.0 s, allowed 1 s"):
        keeper.enforce()


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_times_that_cannot_be(seconds: float) -> None:
    with pytest.raises(ConfigError, match="max_build_seconds"):
        Gates(max_build_seconds=seconds)


@pytest.mark.parametrize("demand", [{"accuracy": math.nan}, {"accuracy": math.inf}, {"acuracy": 0.9}, {"": 0.9}])
def test_qualities_that_cannot_be(demand: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="min_quality asks"):
        Gates(demand)


def test_one_task_may_have_a_demand_of_its_own() -> None:
    assert Gates({"exact_match/copy": 0.9}).min_quality == {"exact_match/copy": 0.9}
