"""Accuracy drop and loss drop against masked runs that reuse nothing."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from blockexport.core.data import Dataset, Sample
from blockexport.core.masks import DepthMask
from blockexport.core.quality import evaluate
from blockexport.errors import DataError
from blockexport.masking.masked import masked
from blockexport.models.loaded import wrap_module
from blockexport.scoring import score
from blockexport.testing.tiny_data import tiny_dataset
from blockexport.testing.tiny_models import tiny_model

FULL = DepthMask.full(6)


def only(dataset, metric):
    return Dataset(metric, tuple(sample for sample in dataset.samples if sample.metric == metric))


def fit_to_argmax(model, dataset):
    """Relabel images with what the full model answers, so that there is accuracy to lose."""
    with torch.no_grad():
        pixels = torch.stack([torch.from_numpy(sample.inputs["pixel_values"]) for sample in dataset.samples])
        answers = model(pixel_values=pixels).logits.argmax(-1).numpy()
    samples = zip(dataset.samples, answers, strict=True)
    return Dataset("answers", tuple(Sample(s.inputs, np.asarray(a), "accuracy", "all") for s, a in samples))


@pytest.mark.parametrize(
    ("architecture", "metric", "sign"),
    [("llama", "bits_per_byte", -1), ("gpt2", "bits_per_byte", -1), ("vit", "accuracy", 1), ("bert", "cosine", 1)],
)
def test_the_drop_is_the_difference_of_the_quality(architecture, metric, sign, masked_forward):
    model = wrap_module(tiny_model(architecture))
    dataset = only(tiny_dataset(model.spec.kind, num_samples=11), metric)
    if metric == "accuracy":
        dataset = fit_to_argmax(model, dataset)
    full = masked_forward(model, FULL)
    before = evaluate(full, dataset, reference=full).metrics[metric].value
    scores = score(model, method="accuracy_drop", data=dataset, batch_size=4)
    for block in range(6):
        after = evaluate(masked_forward(model, FULL.without(block)), dataset, reference=full).metrics[metric].value
        assert scores.scores[block] == pytest.approx(sign * (before - after), rel=1e-4, abs=1e-6)
    assert max(scores.scores) > 1e-3


def test_exact_match_is_lost_where_the_answer_changes(llama, texts, masked_forward):
    """Answers are what the full model says, so each lost one is a drop of one."""
    samples = []
    for sample in texts.samples:
        tokens = sample.inputs["input_ids"].copy()
        logits = masked_forward(llama, FULL)({"input_ids": tokens[None]})[0]
        tokens[-1] = logits[-2].argmax()
        labels = np.full(len(tokens), -100)
        labels[-1] = tokens[-1]
        samples.append(Sample({"input_ids": tokens}, labels, "exact_match", "all"))
    dataset = Dataset("answers", tuple(samples))
    scores = score(llama, method="accuracy_drop", data=dataset, batch_size=3)
    for block in range(6):
        kept = evaluate(masked_forward(llama, FULL.without(block)), dataset, batch_size=1).metrics["exact_match"]
        assert scores.scores[block] == pytest.approx(1 - kept.value)
        assert scores.stderr[block] == pytest.approx(kept.stderr)
    assert max(scores.scores) > 0


@pytest.mark.parametrize("architecture", ["qwen3", "vit"])
def test_loss_drop_is_the_rise_in_cross_entropy(architecture):
    model = wrap_module(tiny_model(architecture))
    dataset = tiny_dataset(model.spec.kind, num_samples=5)

    def losses(mask):
        found = []
        for sample in dataset.samples:
            inputs = {name: torch.from_numpy(array)[None] for name, array in sample.inputs.items()}
            with masked(model, mask), torch.no_grad():
                found.append(model(**inputs, labels=torch.from_numpy(np.asarray(sample.labels))[None]).loss.item())
        return np.array(found)

    scores = score(model, method="loss_drop", data=dataset, batch_size=2)
    for block in range(6):
        rises = losses(FULL.without(block)) - losses(FULL)
        assert scores.scores[block] == pytest.approx(rises.mean(), rel=1e-3, abs=1e-5)
        assert scores.stderr[block] == pytest.approx(rises.std(ddof=1) / math.sqrt(5), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_loss_drop_without_labels_is_the_cosine_lost(architecture, masked_forward):
    model = wrap_module(tiny_model(architecture))
    samples = [Sample(s.inputs, None, "cosine", "all") for s in tiny_dataset(model.spec.kind).samples]
    dataset = Dataset("unlabelled", tuple(samples))
    full = masked_forward(model, FULL)
    scores = score(model, method="loss_drop", data=dataset)
    for block in range(6):
        cosine = evaluate(masked_forward(model, FULL.without(block)), dataset, reference=full).metrics["cosine"].value
        assert scores.scores[block] == pytest.approx(1 - cosine, rel=1e-3, abs=1e-6)


def test_a_data_loader_with_labels_gives_what_the_dataset_gives():
    model = wrap_module(tiny_model("vit"))
    dataset = fit_to_argmax(model, tiny_dataset("vision", num_samples=9))
    rows = [{"pixel_values": s.inputs["pixel_values"], "labels": int(s.labels)} for s in dataset.samples]
    from_loader = score(model, method="accuracy_drop", data=DataLoader(rows, batch_size=4))
    from_dataset = score(model, method="accuracy_drop", data=dataset, batch_size=4)
    assert from_loader.scores == from_dataset.scores
    assert from_loader.stderr == from_dataset.stderr
    assert max(from_loader.scores) > 0


def test_token_labels_of_a_data_loader_are_next_tokens_of_a_decoder(llama):
    tokens = torch.randint(1, 97, (3, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = llama(input_ids=tokens).logits.argmax(-1)
    labels = torch.full_like(tokens, -100)
    labels[:, 4:] = answers[:, 3:-1]
    scores = score(llama, method="accuracy_drop", data=[{"input_ids": tokens, "labels": labels}])
    for block in range(6):
        with masked(llama, FULL.without(block)), torch.no_grad():
            guesses = llama(input_ids=tokens).logits.argmax(-1)
        assert scores.scores[block] == pytest.approx((guesses != answers)[:, 3:-1].double().mean().item())


def test_a_metric_of_outputs_and_batch(llama, texts):
    def margin(outputs, batch):
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        return outputs.logits[:, 0].max(-1).values

    scores = score(llama, method="accuracy_drop", data=texts, metric=margin, batch_size=3)
    for block in range(6):
        drops = []
        for sample in texts.samples:
            tokens = torch.from_numpy(sample.inputs["input_ids"])[None]
            with torch.no_grad():
                full = llama(input_ids=tokens).logits[0, 0].max().item()
                with masked(llama, FULL.without(block)):
                    drops.append(full - llama(input_ids=tokens).logits[0, 0].max().item())
        assert scores.scores[block] == pytest.approx(np.mean(drops), rel=1e-3, abs=1e-5)
        assert scores.stderr[block] == pytest.approx(np.std(drops, ddof=1) / math.sqrt(7), rel=1e-3, abs=1e-5)


def test_a_metric_that_runs_the_model_itself(llama):
    tokens = torch.randint(1, 97, (1, 8), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    answer = llama.module.generate(tokens, **options)

    def agreement(model):
        return float((model.module.generate(tokens, **options) == answer).double().mean())

    scores = score(llama, method="accuracy_drop", metric=agreement, protected=[3])
    for block in (0, 1, 2, 4, 5):
        with masked(llama, FULL.without(block)):
            assert scores.scores[block] == pytest.approx(1 - agreement(llama))
    assert scores.scores[3] == math.inf
    assert max(score for i, score in enumerate(scores.scores) if i != 3) > 0
    assert (scores.stderr, scores.data, scores.num_samples) == ((0.0,) * 6, "", 0)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda outputs, batch: outputs.logits.mean(), r"shape \(\) for 7 samples"),
        (lambda outputs, batch: torch.full((7,), math.nan), "NaN"),
    ],
)
def test_an_unusable_metric_is_refused(llama, texts, metric, message):
    with pytest.raises(DataError, match=message):
        score(llama, method="accuracy_drop", data=texts, metric=metric)
    with pytest.raises(DataError, match="gave nan"):
        score(llama, method="accuracy_drop", metric=lambda model: math.nan)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "got none"),
        (torch.zeros(2, dtype=torch.long), r"got \(2,\)"),
        (torch.full((2, 5), -100), "no label other than -100"),
    ],
)
def test_labels_that_do_not_fit_are_refused(llama, labels, message):
    batch = {"input_ids": torch.ones(2, 5, dtype=torch.long)} | ({} if labels is None else {"labels": labels})
    with pytest.raises(DataError, match=message):
        score(llama, method="accuracy_drop", data=[batch])


def test_bits_per_byte_need_bytes(llama):
    sample = Sample({"input_ids": np.arange(1, 6)}, np.arange(1, 6), "bits_per_byte", "all")
    with pytest.raises(DataError, match="num_bytes"):
        score(llama, method="accuracy_drop", data=Dataset("none", (sample,)))


def test_nan_outputs_are_refused(llama, texts):
    with torch.no_grad():
        llama.module.lm_head.weight[0, 0] = torch.nan
    for method in ("accuracy_drop", "loss_drop"):
        with pytest.raises(DataError, match="NaN"):
            score(llama, method=method, data=texts)
    with torch.no_grad():
        llama.blocks[3].mlp.down_proj.weight[0, 0] = torch.nan
    for method in ("activation", "block_influence"):
        with pytest.raises(DataError, match="NaN"):
            score(llama, method=method, data=texts)
