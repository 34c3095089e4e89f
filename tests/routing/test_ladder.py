from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from blockexport.core.quality import MetricValue, Quality
from blockexport.errors import ConfigError, RequestError
from blockexport.routing.contract import Contract
from blockexport.routing.ladder import Ladder


@dataclass(frozen=True)
class Level:
    name: str
    depth: int
    quality: Quality | None


def _level(depth: int, bits: float, exact: float, copy: float) -> Level:
    metrics = {
        "bits": MetricValue(bits, 0.0, 9, higher_is_better=False),
        "exact": MetricValue(exact, 0.0, 9, higher_is_better=True),
        "exact/copy": MetricValue(copy, 0.0, 9, higher_is_better=True),
    }
    return Level(f"d{depth}", depth, Quality(metrics))


def test_worth_is_the_first_metric_where_higher_is_better_and_its_groups_are_the_tags() -> None:
    ladder = Ladder.of([_level(4, 2.0, 0.5, 0.7), _level(8, 1.0, 0.9, 0.6)])
    assert ladder.names == ("d8", "d4")
    # The shallower level happened to be better at copying; it is not worth more for that.
    assert ladder.worth == {None: (0.9, 0.5), "copy": (0.6, 0.6)}


def test_levels_that_were_not_judged_are_worth_their_share_of_blocks(make_levels: Callable[..., list[Any]]) -> None:
    assert Ladder.of(make_levels((8, 4))).worth == {None: (1.0, 0.5)}


def test_floors_and_tags_are_held_to_what_was_measured() -> None:
    ladder = Ladder(("a", "b", "c"), (3, 2, 1), {None: (0.9, 0.6, 0.2), "t": (0.5, 0.4, 0.3)})
    assert ladder.shallowest_for(Contract()) == 2
    assert ladder.shallowest_for(Contract(min_quality=0.6)) == 1
    assert ladder.shallowest_for(Contract(min_quality=0.45, task="t")) == 0
    with pytest.raises(RequestError, match=r"the best has 0\.9"):
        ladder.shallowest_for(Contract(min_quality=0.95))
    with pytest.raises(RequestError, match="name one of t"):
        ladder.worth_of(Contract(task="u"))
    assert [ladder.deepest_within(limit) for limit in (9, 3, 2.9, 1, 0.9)] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("depths", [(), (1, 2), (2, 2)])
def test_depths_fall(depths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="deepest first"):
        Ladder(tuple("ab"[: len(depths)]), depths, {None: tuple(0.5 for _ in depths)})
    with pytest.raises(ConfigError, match="one number from 0 to 1"):
        Ladder(("a",), (1,), {None: (1.5,)})
