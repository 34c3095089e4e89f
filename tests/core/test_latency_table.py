import pytest

from blockexport.core.latency_table import Curve, PhaseTable, interpolate
from blockexport.errors import ProfileError

TABLE = PhaseTable(
    curves=(
        Curve(depth=4, batch=1, tokens=(16, 64), ms=(2.0, 5.0)),
        Curve(depth=4, batch=4, tokens=(16, 64), ms=(4.0, 8.0)),
        Curve(depth=2, batch=1, tokens=(16, 64), ms=(3.0, 3.0)),
        Curve(depth=2, batch=4, tokens=(16,), ms=(1.0,)),
    )
)


def test_between_knots_lies_a_line_that_goes_on_beyond_the_last() -> None:
    found = [interpolate((10, 20, 40), (1.0, 2.0, 8.0), at) for at in (0, 10, 15, 20, 30, 40, 50)]
    assert found == [1.0, 1.0, 1.5, 2.0, 5.0, 8.0, 11.0]
    assert interpolate((10,), (3.0,), 99) == 3.0


def test_a_shape_lies_between_its_lengths_and_batches() -> None:
    assert TABLE.at(4, 1, 40) == pytest.approx(3.5)
    assert TABLE.at(4, 2, 16) == pytest.approx(2 + 2 / 3)
    assert TABLE.at(4, 6, 16) == pytest.approx(6.0)


def test_a_larger_batch_is_not_cheaper() -> None:
    assert TABLE.at(2, 4, 16) == TABLE.at(2, 1, 16) == 3.0


def test_a_depth_that_nobody_measured_is_refused() -> None:
    with pytest.raises(ProfileError, match="no level of 3 blocks, only of 2, 4"):
        TABLE.at(3, 1, 16)


@pytest.mark.parametrize(("tokens", "ms"), [((), ()), ((1, 2), (1.0,)), ((2, 1), (1.0, 2.0)), ((1, 2), (2.0, 1.0))])
def test_a_curve_has_ascending_lengths_and_times(tokens: tuple[int, ...], ms: tuple[float, ...]) -> None:
    with pytest.raises(ProfileError, match="latency table"):
        Curve(depth=1, batch=1, tokens=tokens, ms=ms)


def test_json_gives_it_back() -> None:
    assert PhaseTable.model_validate_json(TABLE.model_dump_json()) == TABLE
