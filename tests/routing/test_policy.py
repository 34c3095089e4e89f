import pytest

from blockexport.errors import ConfigError
from blockexport.routing.policies.deepest_fit import DeepestFit
from blockexport.routing.policies.fixed import Fixed
from blockexport.routing.policies.per_request import SeedPerRequest
from blockexport.routing.policy import POLICIES, resolve_policy


def test_policies_are_found_by_name() -> None:
    assert resolve_policy("deepest-fit") == DeepestFit()
    assert resolve_policy("seed-per-request:simple") == SeedPerRequest("simple")
    assert resolve_policy("fixed:d8") == Fixed("d8")


def test_a_policy_object_is_taken_as_it_is() -> None:
    policy = Fixed("d3")
    assert resolve_policy(policy) is policy


def test_names_in_the_registry_are_the_names_of_the_policies() -> None:
    examples = {"COMPLEXITY": ":simple", "LEVEL": ":d4", "": ""}
    for info in POLICIES:
        assert resolve_policy(info.name + examples[info.argument]).name == info.name
    assert len({info.name for info in POLICIES}) == len(POLICIES)


@pytest.mark.parametrize("text", ["", "deepest", "deepest-fit:x", "fixed", "fixed:", "seed-per-request"])
def test_an_unknown_name_lists_the_known_ones(text: str) -> None:
    with pytest.raises(ConfigError, match="deepest-fit, seed-adaptive, seed-per-request:COMPLEXITY, fixed:LEVEL"):
        resolve_policy(text)
