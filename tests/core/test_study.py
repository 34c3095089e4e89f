"""Studies survive their file, and refuse what is none."""

import json

import pytest

from blockexport.core.jsonio import dump_json
from blockexport.core.quality import MetricValue, Quality
from blockexport.core.scores import BlockScores
from blockexport.core.study import FULL, Study, StudyData, StudyRow
from blockexport.errors import ConfigError

QUALITY = Quality({"exact_match": MetricValue(0.5, 0.1, 4, True), "bits_per_byte": MetricValue(1.5, 0.2, 3, False)})
DATA = StudyData("given", "d" * 64, 7)


def make_study(**overrides) -> Study:
    fields = {
        "model": "tiny",
        "model_digest": "0" * 64,
        "num_blocks": 3,
        "selection_data": DATA,
        "test_data": DATA,
        "seed": 5,
        "scores": (BlockScores("loss_drop", (float("inf"), 1.0, 2.0), (0.0, 0.1, 0.2), protected=(0,)),),
        "rows": (StudyRow(FULL, "", 3, (0, 1, 2), QUALITY), StudyRow("top_k", "loss_drop", 2, (0, 2), QUALITY)),
    }
    return Study(**(fields | overrides))


def test_its_file_reads_back_as_the_same_study():
    study = make_study()
    text = dump_json(study.to_json())
    read = Study.from_json(json.loads(text))
    assert read == study
    # Metrics keep their order: the first is the one people look at.
    assert read.full.quality.primary[0] == "exact_match"


def test_labels_name_strategy_and_method():
    assert [row.label for row in make_study().rows] == ["full", "top_k: loss_drop"]


def test_another_version_is_refused():
    value = make_study().to_json() | {"schema_version": 2}
    with pytest.raises(ConfigError, match="schema version 2"):
        Study.from_json(value)


@pytest.mark.parametrize("value", [None, [], {}, {"schema_version": 1}, {"schema_version": 1, "model": 3}])
def test_what_is_no_study_is_refused(value):
    with pytest.raises(ConfigError, match="blockexport study"):
        Study.from_json(value)


def test_the_full_row_must_lead():
    with pytest.raises(ConfigError, match="full model"):
        make_study(rows=make_study().rows[1:])


def test_a_row_must_keep_what_its_depth_says():
    with pytest.raises(ConfigError, match="keeps 1 blocks"):
        make_study(rows=(*make_study().rows, StudyRow("greedy", "", 2, (0,), QUALITY)))


def test_a_row_without_figures_is_refused():
    with pytest.raises(ConfigError, match="no quality"):
        make_study(rows=(StudyRow(FULL, "", 3, (0, 1, 2), Quality({})),))
