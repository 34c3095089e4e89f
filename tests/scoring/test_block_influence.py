"""Block influence from the hidden states that transformers itself hands out."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from blockexport.models.loaded import wrap_module
from blockexport.scoring import score
from blockexport.testing.tiny_data import tiny_dataset
from blockexport.testing.tiny_models import tiny_inputs, tiny_model


@pytest.mark.parametrize("architecture", ["qwen2", "opt", "bert", "vit"])
def test_one_minus_cosine_between_input_and_output(architecture):
    model = wrap_module(tiny_model(architecture))
    dataset = tiny_dataset(model.spec.kind, num_samples=4)
    each = []
    for sample in dataset.samples:
        inputs = {name: torch.from_numpy(array)[None] for name, array in sample.inputs.items()}
        with torch.no_grad():
            states = [state[0] for state in model(**inputs, output_hidden_states=True).hidden_states]
        # The last state has passed the final norm, so the last block is left out.
        pairs = list(pairwise(states))[:5]
        each.append([1 - torch.cosine_similarity(a, b, dim=-1).mean().item() for a, b in pairs])
    scores = score(model, method="block_influence", data=dataset, batch_size=3)
    assert scores.scores[:5] == pytest.approx(np.mean(each, axis=0), rel=1e-3)
    assert scores.num_samples == 4


def test_a_block_that_changes_nothing_scores_zero(llama, texts):
    with torch.no_grad():
        llama.blocks[2].self_attn.o_proj.weight.zero_()
        llama.blocks[2].mlp.down_proj.weight.zero_()
    scores = score(llama, method="block_influence", data=texts).scores
    assert scores[2] == pytest.approx(0, abs=1e-6)
    assert min(scores[:2] + scores[3:]) > 1e-3


def test_left_padding_does_not_count(llama):
    tokens = tiny_inputs(llama.module, batch_size=1)["input_ids"]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens], 1)
    mask = torch.cat([torch.zeros(1, 4, dtype=torch.long), torch.ones_like(tokens)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    plain = score(llama, method="block_influence", data=[{"input_ids": tokens}])
    left = score(
        llama,
        method="block_influence",
        data=[{"input_ids": padded, "attention_mask": mask, "position_ids": positions}],
    )
    assert left.scores == pytest.approx(plain.scores, rel=1e-3)
