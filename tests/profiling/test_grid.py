import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.profiling.grid import build_grid


@given(context=st.integers(0, 5000), quick=st.booleans())
def test_every_cell_fits_the_context_and_occurs_once(context: int, quick: bool) -> None:
    cells = build_grid("decoder", context, quick=quick)
    assert {cell.phase for cell in cells} == {"prefill", "decode"}
    assert len(set(cells)) == len(cells)
    if context:
        assert all(cell.new_tokens + cell.kv_tokens <= context for cell in cells)
    assert all(cell.new_tokens >= 1 and cell.kv_tokens >= 0 for cell in cells)


def test_quick_is_much_smaller() -> None:
    quick, full = build_grid("decoder", 2048, quick=True), build_grid("decoder", 2048, quick=False)
    assert set(quick) < set(full)
    assert len(quick) <= 12
    assert len(full) >= 30


def test_cells_vary_in_every_dimension_of_the_model() -> None:
    for quick in (True, False):
        cells = build_grid("decoder", 512, quick=quick)
        prefill = [cell for cell in cells if cell.phase == "prefill"]
        decode = [cell for cell in cells if cell.phase == "decode"]
        assert {cell.batch for cell in prefill} == {cell.batch for cell in decode} == {1, 2, 4}
        assert len({cell.new_tokens for cell in prefill}) >= 3
        assert len({cell.kv_tokens for cell in decode}) >= 3


def test_cells_come_cheapest_first() -> None:
    tokens = [cell.batch * cell.new_tokens for cell in build_grid("decoder", 0, quick=False)]
    assert tokens == sorted(tokens)
    assert tokens[-1] == 1024


@pytest.mark.parametrize("kind", ["encoder", "vision"])
def test_single_pass_models_are_measured_by_batch(kind: str) -> None:
    cells = build_grid(kind, 128, quick=True)  # type: ignore[arg-type]
    assert [(cell.phase, cell.batch, cell.new_tokens, cell.kv_tokens) for cell in cells] == [
        ("forward", batch, 0, 0) for batch in (1, 2, 4)
    ]
