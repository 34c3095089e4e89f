import numpy as np
import pytest

from blockexport.core.data import IGNORED_LABEL, Dataset
from blockexport.core.questions import PictureQuestion
from blockexport.errors import DataError
from blockexport.models.demos.digits_molmo.tokenizer import END_OF_TEXT, train_tokenizer
from blockexport.processing import PictureGeometry
from blockexport.processing.processor import MolmoProcessor
from blockexport.processing.samples import question_sample

SMALL = PictureGeometry(crop_size=24, patch_size=4, margins=(2, 2), max_crops=4)
TOKENIZER = train_tokenizer()
PROCESSOR = MolmoProcessor(TOKENIZER, SMALL, TOKENIZER.token_to_id(END_OF_TEXT))
PICTURE = np.zeros((24, 24, 3), np.uint8)


def question(*answers, size=(24, 24), **options):
    return PictureQuestion(np.zeros((*size, 3), np.uint8), "Which digits?", answers, "read", **options)


def test_the_answer_and_its_end_are_labelled_and_nothing_else():
    sample = question_sample(question("7 5"), PROCESSOR)
    labelled = sample.labels[sample.labels != IGNORED_LABEL]
    assert TOKENIZER.decode(labelled.tolist(), skip_special_tokens=False) == " 7 5" + END_OF_TEXT
    np.testing.assert_array_equal(sample.inputs["input_ids"][-len(labelled) :], labelled)
    asked = PROCESSOR("Which digits?", [PICTURE])
    np.testing.assert_array_equal(sample.inputs["input_ids"][: -len(labelled)], asked["input_ids"])
    assert (sample.metric, sample.group) == ("exact_match", "read")


def test_the_most_frequent_answer_is_the_one_to_give():
    sample = question_sample(question("1", "2", "2", metric="vqa_accuracy"), PROCESSOR)
    assert sample.inputs["input_ids"][-2] == TOKENIZER.encode(" 2").ids[0]
    end = PROCESSOR.end_token
    one, two = ((*TOKENIZER.encode(f" {digit}").ids, end) for digit in (1, 2))
    # Person by person: how many of the two others said so.
    assert sample.metric == "vqa_accuracy"
    assert sample.replies == ((one, pytest.approx((0 + 0.5 + 0.5) / 3)), (two, pytest.approx((1 + 0.5 + 0.5) / 3)))


def test_choices_are_known_by_their_first_tokens():
    sample = question_sample(question("odd", metric="multiple_choice", choices=("even", "odd")), PROCESSOR)
    assert sample.metric == "multiple_choice"
    assert [TOKENIZER.id_to_token(token) for token in sample.choices] == ["Ġeven", "Ġodd"]


def test_choices_that_begin_alike_are_refused():
    with pytest.raises(DataError, match="begin alike"):
        question_sample(question("1 2", metric="multiple_choice", choices=("1 2", "1 3")), PROCESSOR)


def test_an_empty_answer_is_refused():
    with pytest.raises(DataError, match="has no token"):
        question_sample(question(" "), PROCESSOR)


def test_samples_with_more_and_fewer_crops_make_a_batch():
    samples = (question_sample(question("1"), PROCESSOR), question_sample(question("2 3", size=(24, 48)), PROCESSOR))
    (batch,) = Dataset("pictures", samples, pad_token=0).batches(2)
    assert batch.inputs["images"].shape[:2] == (2, 5)
    for name in ("images", "image_masks", "image_input_idx"):
        assert (batch.inputs[name][0, 2:] == -1).all()
        np.testing.assert_array_equal(batch.inputs[name][0, :2], samples[0].inputs[name])
    assert batch.inputs["attention_mask"].sum(1).tolist() == [len(sample.inputs["input_ids"]) for sample in samples]
