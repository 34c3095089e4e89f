"""The divergence from the full model against a computation that reuses nothing."""

from collections import Counter

import numpy as np
import pytest
import torch

from blockexport.core.data import IGNORED_LABEL, Dataset, Sample
from blockexport.core.masks import DepthMask
from blockexport.errors import DataError, MaskError
from blockexport.masking.masked import masked
from blockexport.models.loaded import wrap_module
from blockexport.models.objective import kl_objective
from blockexport.testing.tiny_data import tiny_dataset
from blockexport.testing.tiny_models import tiny_model


def unlabelled(dataset):
    samples = [Sample(sample.inputs, None, "cosine", "all") for sample in dataset.samples]
    return Dataset("unlabelled", tuple(samples))


def outputs_one_by_one(model, dataset, mask):
    """Unpadded outputs of every sample."""
    outputs = []
    with masked(model, mask), torch.no_grad():
        for sample in dataset.samples:
            inputs = {name: torch.from_numpy(array)[None] for name, array in sample.inputs.items()}
            outputs.append(getattr(model(**inputs), model.spec.output)[0].double())
    return outputs


def kl(full, ours):
    return (full.softmax(-1) * (full.log_softmax(-1) - ours.log_softmax(-1))).sum(-1)


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4], [2, 3], [0, 5]])
@pytest.mark.parametrize("architecture", ["qwen2", "vit"])
def test_kl_over_all_tokens_that_are_no_padding(architecture, kept):
    model = wrap_module(tiny_model(architecture))
    dataset = unlabelled(tiny_dataset(model.spec.kind, num_samples=7))
    mask = DepthMask.from_kept(kept, 6)
    full = outputs_one_by_one(model, dataset, DepthMask.full(6))
    ours = outputs_one_by_one(model, dataset, mask)
    expected = torch.cat([kl(a, b).reshape(-1) for a, b in zip(full, ours, strict=True)]).mean().item()
    objective = kl_objective(model, dataset, batch_size=3)
    assert expected > 1e-3
    assert objective(mask) == pytest.approx(expected, rel=1e-4)
    assert objective(DepthMask.full(6)) == 0.0


def test_only_positions_that_predict_a_label_count():
    model = wrap_module(tiny_model("llama"))
    tokens = np.random.default_rng(3).integers(1, 97, 10)
    labels = np.full(10, IGNORED_LABEL)
    labels[[4, 9]] = tokens[[4, 9]]
    dataset = Dataset("answers", (Sample({"input_ids": tokens}, labels, "exact_match", "all"),))
    mask = DepthMask.from_kept([0, 3], 6)
    (full,) = outputs_one_by_one(model, dataset, DepthMask.full(6))
    (ours,) = outputs_one_by_one(model, dataset, mask)
    expected = kl(full, ours)[[3, 8]].mean().item()
    assert kl_objective(model, dataset)(mask) == pytest.approx(expected, rel=1e-4)


def test_hidden_states_are_compared_by_cosine():
    model = wrap_module(tiny_model("bert"))
    dataset = tiny_dataset("encoder", num_samples=5)
    mask = DepthMask.from_kept([0, 1, 4], 6)
    full = [output.mean(0) for output in outputs_one_by_one(model, dataset, DepthMask.full(6))]
    ours = [output.mean(0) for output in outputs_one_by_one(model, dataset, mask)]
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(full, ours, strict=True)]
    assert kl_objective(model, dataset, batch_size=2)(mask) == pytest.approx(1 - np.mean(cosines), rel=1e-3)


def test_candidates_from_the_last_block_on_run_only_what_lies_behind():
    model = wrap_module(tiny_model("llama"))
    objective = kl_objective(model, unlabelled(tiny_dataset("decoder")), batch_size=8)
    counts = Counter()
    for i, block in enumerate(model.blocks):
        block.mlp.register_forward_hook(lambda *_, i=i: counts.update([i]))
    for dropped in reversed(range(6)):
        counts.clear()
        objective(DepthMask.full(6).without(dropped))
        assert counts == dict.fromkeys(range(dropped + 1, 6), 1)


def test_bad_input():
    model = wrap_module(tiny_model("llama"))
    with pytest.raises(DataError, match="holds no batch"):
        kl_objective(model, [])
    with pytest.raises(MaskError, match="7 blocks"):
        kl_objective(model, tiny_dataset("decoder"))(DepthMask.full(7))
    with torch.no_grad():
        model.module.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        kl_objective(model, tiny_dataset("decoder"))
