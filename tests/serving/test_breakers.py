from hypothesis import given
from hypothesis import strategies as st

from blockexport.serving.breakers import Breakers


def test_rests_get_longer_until_a_probe_succeeds() -> None:
    breakers, now, rests = Breakers(1), 0.0, []
    for _ in range(4):
        breakers.fail(0, now, "no reason")
        rests.append(breakers.next_probe_ms() - now)
        assert breakers.state(0, now) == "open"
        now = breakers.next_probe_ms()
        assert breakers.state(0, now) == "half-open"
    assert rests == [rests[0] * factor for factor in (1, 2, 4, 8)]
    assert breakers.reason(0) == "no reason"
    breakers.succeed(0)
    assert breakers.state(0, now) == "closed"
    assert breakers.all_closed
    breakers.fail(0, now, "")
    assert breakers.next_probe_ms() - now == rests[0]


@given(failed=st.sets(st.integers(0, 4)), wanted=st.integers(0, 4), shallowest=st.integers(0, 4))
def test_the_nearest_level_that_works_stands_in_shallower_ones_first(
    failed: set[int], wanted: int, shallowest: int
) -> None:
    breakers = Breakers(5)
    for level in failed:
        breakers.fail(level, 0.0, "")
    found = breakers.substitute(min(wanted, shallowest), shallowest, 1.0)
    works = [level for level in range(shallowest + 1) if level not in failed]
    below = [level for level in works if level >= min(wanted, shallowest)]
    assert found == (below[0] if below else works[-1] if works else None)
