"""Greedy selection on a real forward pass, against a search that reuses nothing."""

import pytest
import torch

from blockexport.core.masks import DepthMask
from blockexport.core.scores import BlockScores
from blockexport.errors import ScoresError
from blockexport.masking.masked import masked
from blockexport.models.loaded import wrap_module
from blockexport.selection import select
from blockexport.testing.tiny_models import tiny_inputs, tiny_model


def plain_greedy(model, inputs, num_rounds):
    """The definition, spelled out: remove the block that leaves the smallest mean KL to the full model."""

    def log_probabilities(mask):
        with masked(model, mask), torch.no_grad():
            return model(**inputs).logits.log_softmax(-1)[inputs["attention_mask"] > 0].double()

    full = log_probabilities(DepthMask.full(model.num_blocks))
    mask = DepthMask.full(model.num_blocks)
    for _ in range(num_rounds):
        candidates = [mask.without(block) for block in mask.kept]
        divergences = [(full.exp() * (full - log_probabilities(c))).sum(-1).mean().item() for c in candidates]
        mask = candidates[divergences.index(min(divergences))]
    return mask


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_equals_the_search_without_reuse(architecture):
    model = wrap_module(tiny_model(architecture))
    inputs = tiny_inputs(model.module, batch_size=3)
    scores = BlockScores("given", (0.0,) * 6, (0.0,) * 6, model=model.spec.digest)
    ladder = select(scores, depths=[4, 2], strategy="greedy", model=model, data=[inputs])
    assert [level.mask for level in ladder.levels] == [plain_greedy(model, inputs, 2), plain_greedy(model, inputs, 4)]


def test_scores_of_another_model_are_refused():
    model = wrap_module(tiny_model("llama"))
    data = [tiny_inputs(model.module)]
    for scores in (
        BlockScores("given", (0.0,) * 5, (0.0,) * 5),
        BlockScores("given", (0.0,) * 6, (0.0,) * 6, model="0" * 64),
    ):
        with pytest.raises(ScoresError, match="another model"):
            select(scores, depths=[2], strategy="greedy", model=model, data=data)
