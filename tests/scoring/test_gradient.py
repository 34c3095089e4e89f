"""Gradient scores against a plain backward pass, and that they leave no trace."""

import numpy as np
import pytest
import torch

from blockexport.core.data import Dataset, Sample
from blockexport.errors import DataError
from blockexport.models.loaded import wrap_module
from blockexport.scoring import score
from blockexport.testing.tiny_data import tiny_dataset
from blockexport.testing.tiny_models import tiny_model


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "vit"])
def test_equals_a_plain_backward_pass_per_sample(architecture):
    model = wrap_module(tiny_model(architecture))
    dataset = tiny_dataset(model.spec.kind, num_samples=4)
    each = []
    for sample in dataset.samples:
        inputs = {name: torch.from_numpy(array)[None] for name, array in sample.inputs.items()}
        # transformers shifts the labels of a decoder itself.
        model(**inputs, labels=torch.from_numpy(np.asarray(sample.labels))[None]).loss.backward()
        each.append(
            [sum(p.grad.abs().sum().item() for p in b.parameters() if p.grad is not None) for b in model.blocks]
        )
        model.module.zero_grad()
    for batch_size in (1, 3):
        scores = score(model, method="gradient", data=dataset, batch_size=batch_size)
        assert scores.scores == pytest.approx(np.mean(each, axis=0), rel=1e-3)


def test_gradients_flags_and_mode_stay_as_they_were(texts):
    module = tiny_model("llama")
    module.train()
    module.model.layers[1].eval()
    module.model.layers[2].requires_grad_(requires_grad=False)
    module.lm_head.weight.grad = torch.ones_like(module.lm_head.weight)
    flags = [parameter.requires_grad for parameter in module.parameters()]
    scores = score(module, method="gradient", data=texts)
    assert min(scores.scores) > 0
    assert [parameter.requires_grad for parameter in module.parameters()] == flags
    assert (module.lm_head.weight.grad == 1).all()
    assert all(parameter.grad is None for block in module.model.layers for parameter in block.parameters())
    assert [part.training for part in (module, module.model.layers[0], module.model.layers[1])] == [True, True, False]


def test_dropout_does_not_blur_it(texts):
    module = tiny_model("gpt2")
    assert module.config.resid_pdrop > 0
    module.train()
    assert score(module, method="gradient", data=texts) == score(module, method="gradient", data=texts)


def test_samples_without_labels_are_refused(llama):
    dataset = Dataset("unlabelled", (Sample({"input_ids": np.arange(1, 6)}, None, "cosine", "all"),))
    with pytest.raises(DataError, match="has no labels"):
        score(llama, method="gradient", data=dataset)
    with pytest.raises(DataError, match="has no labels"):
        score(llama, method="gradient", data=[{"input_ids": torch.ones(2, 5, dtype=torch.long)}])
