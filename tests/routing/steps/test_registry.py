import pytest

from blockexport.errors import ConfigError
from blockexport.routing.ladder import Ladder
from blockexport.routing.steps.registry import STEP_POLICIES, resolve_step_policy

LADDER = Ladder(("d4", "d2"), (4, 2), {None: (1.0, 0.5)})


@pytest.mark.parametrize("name", [*STEP_POLICIES, "fixed:d2"])
def test_every_name_gives_a_policy(name: str) -> None:
    assert 0 <= resolve_step_policy(name, LADDER).shallowest(LADDER) < 2


def test_fixed_takes_the_name_of_a_level() -> None:
    assert resolve_step_policy("fixed:d2", LADDER).shallowest(LADDER) == 1
    with pytest.raises(ConfigError, match="fixed:d4, fixed:d2"):
        resolve_step_policy("fixed:d3", LADDER)
