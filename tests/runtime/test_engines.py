from collections.abc import Callable

import numpy as np
import pytest

from blockexport.errors import RequestError
from blockexport.runtime.workspace import Workspace

pytestmark = pytest.mark.slow


def test_rungs_are_the_order_of_levels(ladder_of: Callable) -> None:
    engines = ladder_of("llama").engines
    assert [engines.rung(level) for level in ("d4", "d3", "d2")] == [0, 1, 2]
    with pytest.raises(RequestError, match="no level 'd1'; this bundle has d4, d3, d2"):
        engines.rung("d1")


def test_a_cache_has_a_row_for_each_block_of_any_level(ladder_of: Callable) -> None:
    engines = ladder_of("llama").engines
    cache = engines.new_cache(2, 5)
    assert {block: keys.shape for block, (keys, _) in cache.rows.items()} == dict.fromkeys(range(4), (2, 2, 5, 8))
    assert engines.layout("d2") == {2: (2, 8), 3: (2, 8)}
    cache.enter(1)
    cache.extend(1, 1)
    assert [slots[0] for slots in cache.slots_by_block().values()] == [0, -1, 0, 0]


def test_a_level_is_opened_once_until_it_is_unloaded(ladder_of: Callable) -> None:
    engines = ladder_of("llama").engines
    first = engines.decoder("d3")
    assert engines.decoder("d3") is first
    assert first.blocks == (0, 2, 3)
    assert "d3" in engines.opened
    engines.unload("d3")
    assert "d3" not in engines.opened
    assert engines.decoder("d3") is not first


def test_a_whole_pass_gives_every_position_of_ragged_rows(ladder_of: Callable) -> None:
    ladder = ladder_of("gemma3")
    tokens = np.random.default_rng(0).integers(1, 97, (2, 12))
    mask = np.array([[1] * 12, [1] * 7 + [0] * 5])
    logits = ladder.engines.whole_pass("d3")({"input_ids": tokens, "attention_mask": mask})
    for row, length in enumerate((12, 7)):
        expected = ladder.stock(tokens[row, :length].tolist(), ("d3", length))
        assert np.abs(logits[row, :length] - expected).max() <= ladder.tolerance


def test_a_workspace_ties_each_level_once_until_memory_moves(ladder_of: Callable) -> None:
    workspace = Workspace(ladder_of("llama").engines, 2, 8)
    decoding, prompting = workspace.decoding("d2"), workspace.prompting("d2")
    assert decoding is not prompting
    assert (workspace.decoding("d2"), workspace.prompting("d2")) == (decoding, prompting)
    assert workspace.prompting("d2", 1) is not prompting
    workspace.reserve(8)
    assert workspace.decoding("d2") is decoding
    workspace.reserve(9)
    assert workspace.cache.capacity_tokens == 16
    assert workspace.decoding("d2") is not decoding
    assert workspace.prompting("d2") is not prompting
    workspace.unbind("d2", "d4")
    assert not workspace._decoding | workspace._prompting


def test_a_cache_is_never_larger_than_the_context(ladder_of: Callable) -> None:
    workspace = Workspace(ladder_of("llama").engines, 1, 50)
    workspace.reserve(51)
    assert workspace.cache.capacity_tokens == 64
    assert Workspace(ladder_of("llama").engines, 1, 500).cache.capacity_tokens == 64
