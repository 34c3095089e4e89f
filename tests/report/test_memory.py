"""Memory of a real bundle, measured in real processes."""

from pathlib import Path

import pytest

from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.models.loaded import wrap_module
from blockexport.pipeline.build import build
from blockexport.report import memory
from blockexport.report.memory import MemoryUse, measure_memory, read_pss_bytes
from blockexport.testing.tiny_models import tiny_model

HAS_ROLLUP = Path("/proc/self/smaps_rollup").exists()


def test_pss_is_read_and_not_its_relatives():
    assert read_pss_bytes("Rss:   9 kB\nPss_Dirty:  3 kB\nPss:     7 kB\nPss_Anon:  1 kB\n") == 7 * 1024
    with pytest.raises(ValueError, match="no line Pss"):
        read_pss_bytes("Rss: 9 kB\n")


def test_systems_without_the_figure_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_ROLLUP", tmp_path / "nowhere")
    assert "nowhere" in measure_memory(tmp_path, 1)


@pytest.mark.skipif(not HAS_ROLLUP, reason="no /proc/self/smaps_rollup")
def test_a_bundle_that_cannot_be_opened_gives_the_reason(tmp_path):
    reason = measure_memory(tmp_path, 1)
    assert isinstance(reason, str)
    assert "manifest.json" in reason


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ROLLUP, reason="no /proc/self/smaps_rollup")
@pytest.mark.parametrize("architecture", ["llama", "vit"])
def test_opening_levels_costs_memory(tmp_path, architecture):
    ladder = DepthLadder.from_masks([DepthMask.full(3), DepthMask.from_kept([0], 3)])
    bundle = build(wrap_module(tiny_model(architecture, num_blocks=3)), ladder, out=tmp_path / "bundle")
    use = measure_memory(bundle.folder, 2)
    assert isinstance(use, MemoryUse), use
    assert 1_000_000 < use.none_bytes < use.deepest_bytes < use.all_bytes < 1_000_000_000
