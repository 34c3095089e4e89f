"""A partial run against the masked model, and what it executes."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

from blockexport.core.masks import DepthMask
from blockexport.errors import MaskError
from blockexport.masking.masked import masked
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.models.partial import record, rerun, skipping
from blockexport.testing.tiny_models import ARCHITECTURES, DECODERS, tiny_inputs, tiny_model

MASKS = [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [0, 1, 2, 4, 5], [1, 3, 4], [5]]
# Both runs apply the same kernels to the same shapes; only the order of allocation differs.
TOLERANCE = 1e-6


@contextmanager
def executed(model: LoadedModel) -> Iterator[Counter[int]]:
    """Count for each block how often its inside, not merely its patched forward, runs."""
    counts: Counter[int] = Counter()
    with ExitStack() as hooks:
        for i, block in enumerate(model.blocks):
            # Counting at the block itself would count its patched forward too.
            inside = next(part for part in block.modules() if part is not block and [*part.parameters(recurse=False)])
            hooks.callback(inside.register_forward_hook(lambda *_, i=i: counts.update([i])).remove)
        yield counts


def masked_output(model: LoadedModel, inputs: dict[str, torch.Tensor], mask: DepthMask) -> torch.Tensor:
    with masked(model, mask), torch.no_grad():
        return getattr(model(**inputs), model.spec.output)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rerun_equals_the_masked_model(architecture):
    model = wrap_module(tiny_model(architecture))
    inputs = tiny_inputs(model.module, batch_size=3)
    full = record(model, inputs)
    for kept in MASKS:
        mask = DepthMask.from_kept(kept, 6)
        theirs = masked_output(model, inputs, mask)
        ours = getattr(rerun(model, full, mask).outputs, model.spec.output)
        assert (ours - theirs).abs().max() <= TOLERANCE
        assert (ours - getattr(full.outputs, model.spec.output)).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "bert", "vit"])
@pytest.mark.parametrize("dropped", range(6))
def test_dropping_a_block_executes_only_the_blocks_behind_it(architecture, dropped):
    model = wrap_module(tiny_model(architecture))
    with executed(model) as counts:
        full = record(model, tiny_inputs(model.module))
        assert counts == dict.fromkeys(range(6), 1)
        counts.clear()
        rerun(model, full, DepthMask.full(6).without(dropped))
    assert counts == dict.fromkeys(range(dropped + 1, 6), 1)


def test_reruns_chain_through_masks_that_add_and_remove():
    model = wrap_module(tiny_model("llama"))
    inputs = tiny_inputs(model.module)
    run = record(model, inputs, DepthMask.from_kept([0, 2, 5], 6))
    for kept in [[0, 1, 5], [0, 1, 3, 4], [1, 3, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]:
        mask = DepthMask.from_kept(kept, 6)
        run = rerun(model, run, mask)
        assert (run.outputs.logits - masked_output(model, inputs, mask)).abs().max() <= TOLERANCE
    with executed(model) as counts:
        assert rerun(model, run, mask) is run
    assert not counts


def test_an_error_inside_leaves_the_model_as_it_was():
    model = wrap_module(tiny_model("llama"))
    inputs = tiny_inputs(model.module)
    before = record(model, inputs).outputs.logits
    failing = model.blocks[3].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record(model, inputs)
    failing.remove()
    assert not any("forward" in vars(block) for block in model.blocks)
    assert torch.equal(record(model, inputs).outputs.logits, before)


def test_a_forward_that_somebody_else_had_shadowed_comes_back():
    model = wrap_module(tiny_model("llama"))
    block = model.blocks[2]
    shadow = block.forward
    block.forward = shadow
    record(model, tiny_inputs(model.module))
    assert vars(block)["forward"] is shadow


def test_a_masked_model_is_refused():
    model = wrap_module(tiny_model("llama"))
    with masked(model, DepthMask.from_kept([0], 6)), pytest.raises(MaskError, match="remove it first"):
        record(model, tiny_inputs(model.module))
    with skipping(model, DepthMask.from_kept([0], 6)), pytest.raises(MaskError, match="do not nest"):
        masked(model, DepthMask.from_kept([1], 6)).apply()


def cached_logits(model, tokens):
    """Logits of the last token, decoded behind a cache of the others."""
    with torch.no_grad():
        cache = model(input_ids=tokens[:, :-1], use_cache=True).past_key_values
        return model(input_ids=tokens[:, -1:], past_key_values=cache, use_cache=True).logits


@pytest.mark.parametrize("architecture", DECODERS)
def test_skipping_decodes_as_the_masked_model_does(architecture):
    model = wrap_module(tiny_model(architecture))
    mask = DepthMask.from_kept([1, 3, 4], 6)
    tokens = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    with masked(model, mask):
        theirs = cached_logits(model, tokens)
    with skipping(model, mask):
        ours = cached_logits(model, tokens)
    assert (ours - theirs).abs().max() <= TOLERANCE
    # The mask is gone again.
    assert (cached_logits(model, tokens) - theirs).abs().max() > 1e-3
