"""Activation scores against a transcript of the method they are to be compared with."""

import numpy as np
import pytest
import torch

from blockexport.models.loaded import wrap_module
from blockexport.scoring import score
from blockexport.testing.tiny_data import tiny_dataset
from blockexport.testing.tiny_models import tiny_model


def transcript(blocks, model, batch):
    """The method as seed-transformer-blocks-knob.md prints it, for one batch."""
    activations = {}
    hooks = []
    for index, block in enumerate(blocks):

        def hook(module, inputs, output, index=index):
            x = output[0] if isinstance(output, tuple) else output
            activations.setdefault(index, []).append(x.norm().item())

        hooks.append(block.register_forward_hook(hook))
    with torch.no_grad():
        model(**batch)
    for handle in hooks:
        handle.remove()
    return [float(np.mean(activations[i])) for i in range(len(blocks))]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "vit"])
def test_equals_the_transcript_on_single_samples(architecture):
    model = wrap_module(tiny_model(architecture))
    dataset = tiny_dataset(model.spec.kind, num_samples=4)
    each = [
        transcript(model.blocks, model, {k: torch.from_numpy(v)[None] for k, v in sample.inputs.items()})
        for sample in dataset.samples
    ]
    # One batch of texts of different lengths: padding must not count.
    scores = score(model, method="activation", data=dataset, batch_size=4)
    assert scores.scores == pytest.approx(np.mean(each, axis=0), rel=1e-4)
    assert scores.stderr == pytest.approx(np.std(each, axis=0, ddof=1) / 2, rel=1e-2)
