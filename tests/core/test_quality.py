"""Metrics where the right answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.data import IGNORED_LABEL, Dataset, Sample, collate
from blockexport.core.quality import MetricValue, Quality, evaluate, sample_scores
from blockexport.errors import DataError

VOCAB = 8


def text(tokens, labels=None, metric="exact_match", num_bytes=0, group="all"):
    wanted = np.array(tokens if labels is None else labels, np.int64)
    return Sample({"input_ids": np.array(tokens, np.int64)}, wanted, metric, group, num_bytes)


def uniform(inputs):
    """A model that knows nothing."""
    return np.zeros((*inputs["input_ids"].shape, VOCAB), np.float32)


def counting(inputs):
    """A model that is sure that each token is followed by the next number."""
    logits = np.zeros((*inputs["input_ids"].shape, VOCAB), np.float32)
    np.put_along_axis(logits, (inputs["input_ids"][..., None] + 1) % VOCAB, 50.0, axis=-1)
    return logits


@given(st.lists(st.tuples(st.integers(2, 6), st.integers(1, 9)), min_size=1, max_size=6), st.integers(1, 4))
def test_bits_per_byte_of_a_model_that_knows_nothing(sizes, batch_size):
    """log2(vocab) bits for each predicted token, over all bytes; the first token is given, not predicted."""
    samples = [text([1] * tokens, metric="bits_per_byte", num_bytes=size) for tokens, size in sizes]
    quality = evaluate(uniform, Dataset("texts", tuple(samples)), batch_size=batch_size)
    name, figure = quality.primary
    predicted, size = sum(tokens - 1 for tokens, _ in sizes), sum(size for _, size in sizes)
    assert name == "bits_per_byte"
    assert figure.value == pytest.approx(3 * predicted / size)
    assert (figure.num_samples, figure.higher_is_better) == (len(sizes), False)


def test_ignored_labels_cost_nothing():
    labels = [IGNORED_LABEL, IGNORED_LABEL, 2, IGNORED_LABEL]
    dataset = Dataset("texts", (text([1, 1, 2, 2], labels, "bits_per_byte", 1),))
    assert evaluate(uniform, dataset).primary[1].value == pytest.approx(3)


def test_bits_per_byte_have_no_error_where_every_text_costs_the_same():
    samples = tuple(text([1] * n, metric="bits_per_byte", num_bytes=2 * (n - 1)) for n in (2, 3, 6))
    figure = evaluate(uniform, Dataset("texts", samples)).primary[1]
    assert (figure.value, figure.stderr) == (pytest.approx(1.5), pytest.approx(0, abs=1e-12))


def test_exact_match_needs_every_labelled_token():
    hit = text([5, 1, 2, 3], [IGNORED_LABEL, IGNORED_LABEL, 2, 3])
    miss = text([5, 1, 2, 4], [IGNORED_LABEL, IGNORED_LABEL, 2, 4])
    figure = evaluate(counting, Dataset("texts", (hit, hit, hit, miss)), batch_size=3).primary[1]
    assert figure.value == 0.75
    assert figure.stderr == pytest.approx(np.std([1, 1, 1, 0], ddof=1) / 2)


def test_a_choice_is_judged_by_its_first_token_against_the_other_choices():
    """The model says 2; it prefers no other choice to another, so the first of them is its choice."""
    labels = [IGNORED_LABEL, IGNORED_LABEL, 4, 0]
    sample = Sample({"input_ids": np.array([5, 1, 4, 0])}, np.array(labels), "multiple_choice", "all", choices=(4, 3))
    assert evaluate(counting, Dataset("texts", (sample,))).primary == ("multiple_choice", MetricValue(1, 0, 1, True))
    other = Sample(sample.inputs, sample.labels, "multiple_choice", "all", choices=(2, 4))
    assert evaluate(counting, Dataset("texts", (other,))).primary[1].value == 0


def test_accuracy_of_classes():
    samples = [
        Sample({"pixel_values": np.full((1, 1, 1), i, np.float32)}, np.asarray(label), "accuracy", "all")
        for i, label in enumerate([0, 1, 2, 0])
    ]

    def forward(inputs):
        return np.eye(4, dtype=np.float32)[inputs["pixel_values"].reshape(-1).astype(int)]

    assert evaluate(forward, Dataset("images", tuple(samples)), batch_size=3).primary == (
        "accuracy",
        MetricValue(0.75, 0.25, 4, True),
    )


def test_cosine_pools_over_tokens_and_leaves_padding_out():
    samples = [Sample({"input_ids": np.arange(1, n + 1)}, None, "cosine", "all") for n in (2, 3)]
    batch = collate(samples, 0)
    reference = np.zeros((2, 3, 2), np.float32)
    reference[..., 0] = 1
    output = reference.copy()
    output[0, 2] = [0, 9]  # padding
    output[1] = [[0, 1], [0, 1], [1, 0]]
    assert sample_scores(output, batch, reference) == pytest.approx([1, 1 / math.sqrt(5)])
    with pytest.raises(DataError, match="compares with the full model"):
        sample_scores(output, batch, None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_refused(value):
    batch = collate([text([1, 2])], 0)
    with pytest.raises(DataError, match="NaN or infinity"):
        sample_scores(np.full((1, 2, VOCAB), value, np.float32), batch, None)


def test_metrics_and_groups_are_reported_apart_and_first_come_first():
    samples = (
        text([1, 2], group="easy"),
        text([1, 2], metric="bits_per_byte", num_bytes=1, group="code"),
        text([1, 3], group="hard"),
        text([1, 2], group="hard"),
    )
    quality = evaluate(counting, Dataset("mixed", samples))
    assert list(quality.metrics) == ["exact_match", "bits_per_byte", "exact_match/easy", "exact_match/hard"]
    assert quality.metrics["exact_match"].value == pytest.approx(2 / 3)
    assert quality.metrics["exact_match/hard"].value == 0.5
    assert quality.metrics["bits_per_byte"].num_samples == 1


def test_quality_survives_its_file():
    quality = Quality({"accuracy": MetricValue(0.5, 0.1, 4, True), "bits_per_byte": MetricValue(1.5, 0.0, 1, False)})
    assert Quality.from_json(quality.to_json()) == quality


@pytest.mark.parametrize(
    ("higher_is_better", "bound", "expected"),
    [(True, 0.5, True), (True, 0.51, False), (False, 0.5, True), (False, 0.49, False)],
)
def test_as_good_as_a_bound(higher_is_better, bound, expected):
    assert MetricValue(0.5, 0.0, 1, higher_is_better).is_at_least(bound) is expected


@given(st.floats(-50, 50), st.integers(1, 4))
def test_scores_do_not_depend_on_a_constant_in_the_logits(shift, batch_size):
    samples = tuple(text([1, 2, 3], metric="bits_per_byte", num_bytes=n) for n in (3, 4, 5))
    dataset = Dataset("texts", samples)
    plain = evaluate(counting, dataset, batch_size=batch_size).primary[1].value
    shifted = evaluate(lambda inputs: counting(inputs) + np.float32(shift), dataset).primary[1].value
    assert shifted == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize(
    ("said", "worth"),
    [
        ((2, 3, 7), 0.9),
        ((4, 7), 0.3),
        ((4, 5, 7), 0.3),
        ((2, 7), 0.6),
        ((5, 7), 0.0),
        ((6, 1, 7), 0.1),
        ((2, 3, 1), 0.0),
    ],
)
def test_vqa_accuracy_is_what_the_answer_that_begins_so_is_worth(said, worth):
    """The labelled answer is 2 3; 7 ends an answer. A reply is known up to the first token that is not labelled."""
    replies = (((2, 3, 7), 0.9), ((4, 7), 0.3), ((2, 7), 0.6), ((6, 1, 7), 0.2), ((6, 7), 0.1))
    labels = np.array([IGNORED_LABEL, 2, 3, 7])
    sample = Sample({"input_ids": np.array([1, 2, 3, 7])}, labels, "vqa_accuracy", "colours", replies=replies)
    batch = collate([sample], 0)
    # Told the labelled answer, the model says `said` as long as that is its beginning, and else whatever it says.
    logits = np.zeros((1, 4, VOCAB), np.float32)
    logits[0, np.arange(3), (*said, 1)[:3]] = 1.0
    assert sample_scores(logits, batch, None).tolist() == [worth]


def test_what_replies_are_worth_is_in_the_digest():
    labels = np.array([IGNORED_LABEL, 2])
    digests = {
        Dataset("d", (Sample({"input_ids": np.array([1, 2])}, labels, "vqa_accuracy", "g", replies=replies),)).digest
        for replies in ((((2,), 1.0),), (((2,), 0.5),), ())
    }
    assert len(digests) == 3
