"""What all methods have in common: arguments, bookkeeping, protection, resuming."""

import json
import math
from collections import Counter

import pytest
import torch

from blockexport.core.masks import DepthMask
from blockexport.errors import BlockExportError, ConfigError, DataError, MaskError, ScoresError
from blockexport.masking.masked import masked
from blockexport.models.loaded import wrap_module
from blockexport.scoring import SCORING_METHODS, score
from blockexport.testing.tiny_data import tiny_dataset
from blockexport.testing.tiny_models import ARCHITECTURES, CONTEXT_TOKENS, VOCAB_SIZE, tiny_model


class Killed(BaseException):
    """Stands for a kill: nothing on the way may catch it."""


def kill_after(steps):
    def on_progress(done, total):
        if done == steps:
            raise Killed

    return on_progress


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_a_score_says_where_it_came_from(llama, texts, method):
    scores = score(llama, method=method, data=texts, protected=[5, 0], seed=3, num_samples=4)
    chosen = texts.take(4, 3)
    assert scores.method == method
    assert scores.model == llama.spec.digest
    assert scores.data == chosen.digest
    assert (scores.seed, scores.num_samples, scores.protected) == (3, 4, (0, 5))
    assert (scores.scores[0], scores.scores[5]) == (math.inf, math.inf)
    assert (scores.stderr[0], scores.stderr[5]) == (0.0, 0.0)
    assert all(math.isfinite(value) and value != 0 for value in scores.scores[1:5])
    assert all(error > 0 for error in scores.stderr[1:5])


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_protection_changes_no_other_score(llama, texts, method):
    free = score(llama, method=method, data=texts)
    guarded = score(llama, method=method, data=texts, protected=[2])
    assert guarded.scores[:2] + guarded.scores[3:] == free.scores[:2] + free.scores[3:]
    assert math.isfinite(free.scores[2])


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_batches_do_not_change_scores(llama, texts, method):
    """Texts of different lengths: with batches of one nothing is padded, so padding must not count."""
    whole = score(llama, method=method, data=texts, batch_size=7)
    single = score(llama, method=method, data=texts, batch_size=1)
    assert whole.scores == pytest.approx(single.scores, rel=1e-3, abs=1e-5)
    assert whole.stderr == pytest.approx(single.stderr, rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", SCORING_METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_method_scores_every_architecture(architecture, method):
    model = wrap_module(tiny_model(architecture))
    dataset = tiny_dataset(model.spec.kind)
    if method == "gradient" and model.spec.kind == "encoder":
        with pytest.raises(DataError, match="has no labels"):
            score(model, method=method, data=dataset)
        return
    scores = score(model, method=method, data=dataset)
    assert all(math.isfinite(value) for value in scores.scores)
    assert len(set(scores.scores)) > 1


def test_more_samples_than_there_are(llama, texts):
    assert score(llama, method="block_influence", data=texts, num_samples=1000).num_samples == 7


def test_one_sample_has_no_standard_error(llama, texts):
    assert score(llama, method="loss_drop", data=texts, num_samples=1).stderr == (0.0,) * 6


def test_everything_protected_needs_no_run(llama, texts):
    handle = llama.blocks[0].register_forward_hook(lambda *_: 1 / 0)
    scores = score(llama, method="loss_drop", data=texts, protected=range(6))
    handle.remove()
    assert scores.scores == (math.inf,) * 6


def test_dropping_a_block_runs_only_the_blocks_behind_it(llama, texts):
    counts = Counter()
    for i, block in enumerate(llama.blocks):
        block.mlp.register_forward_hook(lambda *_, i=i: counts.update([i]))
    score(llama, method="accuracy_drop", data=texts, batch_size=7)
    # Once in the full run, and once for each earlier block that is dropped.
    assert counts == {i: 1 + i for i in range(6)}


@pytest.mark.parametrize("method", ["accuracy_drop", "block_influence"])
def test_progress_counts_every_step_once(llama, texts, method):
    seen = []
    score(llama, method=method, data=texts, batch_size=3, protected=[1], on_progress=lambda *step: seen.append(step))
    total = 3 * (5 if method == "accuracy_drop" else 1)
    assert seen == [(done, total) for done in range(total + 1)]


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_a_killed_run_goes_on_where_it_was(llama, texts, method, tmp_path):
    path = tmp_path / "resume.json"
    options = {"method": method, "data": texts, "batch_size": 3, "protected": [4], "resume_path": path}
    steps = []
    expected = score(llama, **options | {"resume_path": None}, on_progress=lambda done, total: steps.append(done))
    for killed_at in range(1, steps[-1] + 1):
        with pytest.raises(Killed):
            score(llama, **options, on_progress=kill_after(killed_at))
        resumed = []
        assert score(llama, **options, on_progress=lambda done, total, seen=resumed: seen.append(done)) == expected
        assert resumed == steps[killed_at:]
        assert not path.exists()


def test_a_resumed_run_does_not_repeat_what_is_done(llama, texts, tmp_path):
    options = {"method": "loss_drop", "data": texts, "batch_size": 7, "resume_path": tmp_path / "resume.json"}
    with pytest.raises(Killed):
        score(llama, **options, on_progress=kill_after(4))
    counts = Counter()
    for i, block in enumerate(llama.blocks):
        block.mlp.register_forward_hook(lambda *_, i=i: counts.update([i]))
    score(llama, **options)
    # The full run, then blocks 4 and 5 dropped in turn.
    assert counts == dict.fromkeys(range(5), 1) | {5: 2}


def test_a_killed_metric_of_the_whole_model_goes_on(llama, tmp_path):
    calls = []

    def norm(model):
        calls.append(1)
        return float(sum(block.forward.__name__ != "forward" for block in model.blocks))

    path = tmp_path / "resume.json"
    with pytest.raises(Killed):
        score(llama, method="accuracy_drop", metric=norm, resume_path=path, on_progress=kill_after(4))
    calls.clear()
    scores = score(llama, method="accuracy_drop", metric=norm, resume_path=path)
    assert len(calls) == 3
    assert scores.scores == (-1.0,) * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "accuracy_drop"}, "method 'loss_drop' \\(now 'accuracy_drop'\\)"),
        ({"seed": 8}, "seed 0 \\(now 8\\)"),
        ({"num_samples": 5}, "data .*num_samples 7 \\(now 5\\)"),
        ({"protected": [1]}, r"protected \[\] \(now \[1\]\)"),
        ({"data": tiny_dataset("decoder", num_samples=7, seed=9)}, "with data "),
        ({"batch_size": 2}, "batch_size"),
    ],
)
def test_the_file_of_another_run_is_refused_and_left_alone(llama, texts, tmp_path, change, message):
    path = tmp_path / "resume.json"
    options = {"method": "loss_drop", "data": texts, "resume_path": path}
    with pytest.raises(Killed):
        score(llama, **options, on_progress=kill_after(2))
    before = path.read_bytes()
    with pytest.raises(ScoresError, match=message + ".*delete it or choose another"):
        score(llama, **options | change)
    assert path.read_bytes() == before


def test_the_file_of_another_model_is_refused(llama, texts, tmp_path):
    options = {"method": "loss_drop", "data": texts, "resume_path": tmp_path / "resume.json"}
    with pytest.raises(Killed):
        score(llama, **options, on_progress=kill_after(2))
    with pytest.raises(ScoresError, match="with model "):
        score(tiny_model("llama", seed=1), **options)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"identity": {}, "done": "x", "moments": []}'])
def test_a_file_that_is_no_unfinished_run_is_refused(llama, texts, tmp_path, content):
    path = tmp_path / "resume.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"resume\.json"):
        score(llama, method="loss_drop", data=texts, resume_path=path)
    assert path.read_text() == content


def test_the_file_is_json_that_any_parser_reads(llama, texts, tmp_path):
    path = tmp_path / "resume.json"
    with pytest.raises(Killed):
        score(llama, method="loss_drop", data=texts, resume_path=path, on_progress=kill_after(2))
    state = json.loads(path.read_text())
    assert (state["done"], len(state["moments"])) == (2, 6)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"method": "magic"}, ConfigError, "unknown scoring method 'magic'; choose one of accuracy_drop"),
        ({"method": "activation", "metric": len}, ConfigError, "takes no metric"),
        ({"protected": [6]}, ScoresError, r"protected blocks \[6\]"),
        ({"protected": [-1]}, ScoresError, r"protected blocks \[-1\]"),
        ({"data": None}, DataError, "no data given"),
        ({"data": []}, DataError, "holds no batch"),
        ({"num_samples": 0}, ConfigError, "num_samples is 0"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
    ],
)
def test_bad_arguments(llama, texts, options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        score(llama, **{"method": "loss_drop", "data": texts} | options)
    assert isinstance(caught.value, BlockExportError)


def test_a_masked_model_is_refused(llama, texts):
    with masked(llama, DepthMask.from_kept([0], 6)), pytest.raises(MaskError, match="remove it first"):
        score(llama, method="loss_drop", data=texts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": torch.full((1, 4), VOCAB_SIZE)}, "token id 97 is outside the vocabulary"),
        ({"input_ids": torch.full((1, 4), -1)}, "token id -1 is outside the vocabulary"),
        ({"input_ids": torch.ones(1, CONTEXT_TOKENS + 1, dtype=torch.long)}, "a sample has 65 tokens, but"),
        ({"labels": torch.full((1, 4), VOCAB_SIZE)}, "label 97 is outside 0"),
    ],
)
def test_batches_that_the_model_cannot_take_are_refused(llama, changes, message):
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.long), "labels": torch.ones(1, 4, dtype=torch.long)} | changes
    with pytest.raises(DataError, match=message):
        score(llama, method="loss_drop", data=[batch])
