"""Every strategy at every depth, on tiny models where each figure can be computed again."""

import json
import math

import numpy as np
import pytest
import torch

from blockexport.core.data import Dataset, Sample
from blockexport.core.jsonio import dump_json
from blockexport.core.masks import DepthMask
from blockexport.core.quality import evaluate
from blockexport.core.scores import BlockScores
from blockexport.core.study import FULL, Study
from blockexport.errors import ConfigError, MaskError
from blockexport.masking.masked import masked
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.pipeline.study import (
    METHODS,
    StudySize,
    _by_threshold,
    draw_evenly,
    measure_masks,
    run_study,
)
from blockexport.selection import select
from blockexport.testing.tiny_data import tiny_dataset
from blockexport.testing.tiny_models import tiny_model

SIZE = StudySize(selection=6, greedy=4, test=8)


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return wrap_module(tiny_model("llama"))


def study_of(model: LoadedModel, **options) -> Study:
    kind = model.spec.kind
    data = {"selection_data": tiny_dataset(kind, 10, seed=1), "test_data": tiny_dataset(kind, 12, seed=2)}
    return run_study(model, **({"num_samples": SIZE} | data | options))


@pytest.fixture(scope="module")
def study(llama) -> Study:
    return study_of(llama)


def masked_forward(model: LoadedModel, mask: DepthMask):
    def forward(inputs):
        with masked(model, mask), torch.no_grad():
            output = model(**{name: torch.from_numpy(np.asarray(array)) for name, array in inputs.items()})
        return getattr(output, model.spec.output).numpy()

    return forward


def test_every_strategy_is_there_at_every_depth(study):
    expected = {(FULL, "", 6)}
    for depth in (5, 3, 2):
        expected |= {("top_k", method, depth) for method in METHODS}
        expected |= {("threshold", "loss_drop", depth), ("sequential", "", depth), ("greedy", "", depth)}
    assert {(row.strategy, row.method, row.depth) for row in study.rows} == expected
    assert len(study.rows) == len(expected)


def test_choices_are_those_of_selection(study, llama):
    by_method = {scores.method: scores for scores in study.scores}
    for row in study.rows:
        if row.strategy == "top_k":
            (level,) = select(by_method[row.method], depths=[row.depth]).levels
            assert row.kept == level.kept
        if row.strategy == "sequential":
            assert row.kept == tuple(range(row.depth))


def test_greedy_levels_are_nested(study):
    kept = [set(row.kept) for row in study.rows if row.strategy == "greedy"]
    assert kept[0] > kept[1] > kept[2]


def test_beam_is_there_if_it_is_asked_for(study, llama):
    beam = study_of(llama, methods=("activation",), beam_width=2)
    found = {row.depth: row.kept for row in beam.rows if row.strategy == "beam"}
    assert set(found) == {5, 3, 2}
    # Of one block, a beam of any width finds what is missed least.
    assert found[5] in {row.kept for row in study.rows if row.strategy == "greedy"}
    narrow = study_of(llama, methods=("activation",), beam_width=1)
    by_strategy = {name: [row.kept for row in narrow.rows if row.strategy == name] for name in ("greedy", "beam")}
    assert by_strategy["greedy"] == by_strategy["beam"]
    with pytest.raises(ConfigError, match="beam_width is 0"):
        study_of(llama, beam_width=0)


def test_quality_is_that_of_the_masked_model(study, llama):
    data = draw_evenly(tiny_dataset("decoder", 12, seed=2), SIZE.test, study.seed)
    assert study.test_data.digest == data.digest
    for row in study.rows[:: len(study.rows) // 4]:
        mask = DepthMask(row.kept, 6)
        expected = evaluate(masked_forward(llama, mask), data)
        assert row.quality.metrics.keys() == expected.metrics.keys()
        for name, figure in expected.metrics.items():
            assert row.quality.metrics[name].value == pytest.approx(figure.value, rel=1e-5)
            assert row.quality.metrics[name].stderr == pytest.approx(figure.stderr, rel=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(study, llama):
    text = dump_json(study.to_json())
    assert dump_json(study_of(llama).to_json()) == text
    assert dump_json(study_of(llama, seed=67).to_json()) != text
    assert Study.from_json(json.loads(text)) == study


def test_the_model_is_left_as_it_was(llama):
    inputs = {"input_ids": torch.arange(1, 9)[None]}
    before = llama(**inputs).logits
    study_of(llama, methods=("loss_drop",))
    assert torch.equal(llama(**inputs).logits, before)


def test_protected_blocks_stay_in_every_choice(llama):
    study = study_of(llama, protected=(4, 4), methods=("activation", "loss_drop"))
    assert all(4 in row.kept for row in study.rows)
    assert all(math.isinf(scores.scores[4]) for scores in study.scores)


def test_depths_that_cannot_be_are_refused_before_anything_is_scored(llama):
    told = []
    with pytest.raises(MaskError, match="protected"):
        study_of(llama, depths=(2,), protected=(0, 1, 2), on_stage=lambda what, share: told.append(what))
    assert not told


def test_an_unknown_method_is_refused(llama):
    with pytest.raises(ConfigError, match="magic"):
        study_of(llama, methods=("magic",))


def test_full_depth_alone_gives_the_full_row_alone(llama):
    study = study_of(llama, depths=(1.0,), methods=("activation",))
    assert [row.strategy for row in study.rows] == [FULL]


@pytest.mark.parametrize(("architecture", "missing"), [("bert", {"gradient"}), ("vit", set())])
def test_other_kinds_are_studied_with_every_method_that_fits(architecture, missing):
    model = wrap_module(tiny_model(architecture, num_blocks=4))
    study = study_of(model, depths=(2,))
    assert {scores.method for scores in study.scores} == set(METHODS) - missing
    if architecture == "bert":
        assert study.full.quality.metrics["cosine"].value == pytest.approx(1.0)


def test_progress_only_rises_and_names_the_stages(llama):
    told = []
    study_of(llama, methods=("activation",), on_stage=lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert {what for what, _ in told} == {
        "scoring blocks by activation",
        "selecting by greedy",
        "measuring every choice",
    }


@pytest.mark.parametrize("scores", [(3.0, 1.0, 2.0, 0.5), (-1.0, -4.0, -2.0, -3.0), (0.0, -4.0, -2.0, -3.0)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_threshold_leaves_the_wanted_depth(scores, depth):
    given = BlockScores("loss_drop", scores, (0.0,) * 4)
    if scores[0] == 0.0 and depth > 1:
        # Every threshold relative to a maximum of 0 is 0, and keeps what reaches 0.
        assert _by_threshold(given, depth).kept == (0,)
        return
    (level,) = select(given, depths=[depth]).levels
    assert _by_threshold(given, depth) == level.mask


def test_a_threshold_between_equal_scores_keeps_both():
    given = BlockScores("loss_drop", (3.0, 1.0, 1.0, 0.5), (0.0,) * 4)
    assert _by_threshold(given, 2).kept == (0, 1, 2)


def test_a_threshold_can_leave_the_protected_blocks_alone():
    given = BlockScores("loss_drop", (2.0, math.inf, 1.0), (0.0,) * 3, protected=(1,))
    assert _by_threshold(given, 1).kept == (1,)


def test_masks_that_repeat_are_measured_once(llama):
    data = tiny_dataset("decoder", 3)
    mask = DepthMask.from_kept([1, 2], 6)
    assert list(measure_masks(llama, [mask, mask], data)) == [mask]


def grouped(counts: dict[str, int]) -> Dataset:
    names = [name for name, count in counts.items() for _ in range(count)]
    samples = [
        Sample({"input_ids": np.arange(i + 1)}, np.arange(i + 1), "exact_match", name) for i, name in enumerate(names)
    ]
    return Dataset("given", tuple(samples))


def test_draws_keep_shares_and_order():
    data = grouped({"a": 40, "b": 10, "c": 1})
    drawn = draw_evenly(data, 10, seed=3)
    names = [sample.group for sample in drawn.samples]
    assert names == ["a"] * 8 + ["b"] * 2 + ["c"]
    lengths = [len(sample.inputs["input_ids"]) for sample in drawn.samples]
    assert lengths == sorted(lengths)
    assert draw_evenly(data, 10, seed=3).digest == drawn.digest
    assert draw_evenly(data, 10, seed=4).digest != drawn.digest


def test_draws_of_more_than_there_is_give_all():
    data = grouped({"a": 3})
    assert draw_evenly(data, 3, seed=0) is data
    with pytest.raises(ConfigError, match="num_samples is 0"):
        draw_evenly(data, 0, seed=0)
