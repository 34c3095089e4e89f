import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blockexport.core.data import IGNORED_LABEL
from blockexport.core.model import ModelSpec, VisionSpec
from blockexport.datasets import load_dataset
from blockexport.errors import DataError, RequestError
from blockexport.models.demos import demo_path
from blockexport.models.demos.code_lm import corpus, tasks
from blockexport.models.demos.digits_molmo.recipe import write_processor
from blockexport.models.demos.digits_vit import data as digits

TOKENIZER = demo_path("demo:code-lm")
DECODER = ModelSpec(
    name="d", architecture="X", kind="decoder", num_blocks=2, digest="x", vocab_size=1024, context_tokens=512
)
ENCODER = DECODER.model_copy(update={"kind": "encoder", "output": "last_hidden_state", "context_tokens": 16})
SEEING = DECODER.model_copy(
    update={
        "vision": VisionSpec(
            num_blocks=6, block_path="v", image_shape=(36, 48), mask_shape=(36,), num_pooled=9, hidden_size=96
        )
    }
)
VISION = ModelSpec(name="v", architecture="X", kind="vision", num_blocks=2, digest="x", image_shape=(1, 8, 8))


def test_windows_predict_all_but_their_first_token_and_count_its_bytes_out(tmp_path: Path) -> None:
    text = "def f(x):\n    return x + 1\n" * 60
    path = tmp_path / "a.py"
    path.write_text(text)
    samples = load_dataset(path, DECODER, TOKENIZER).samples
    assert len(samples) > 1
    for sample in samples:
        assert sample.labels is not None
        assert sample.labels[0] == IGNORED_LABEL
        assert (sample.labels[1:] == sample.inputs["input_ids"][1:]).all()
    # Every byte is counted once, but for the first token of each window and a window too short to be judged.
    assert len(text) - 64 <= sum(sample.num_bytes for sample in samples) < len(text)


def test_an_encoder_gets_one_sample_a_line_cut_to_its_context(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("one line\n\nanother one that is far longer than the context of this small encoder could ever be\n")
    samples = load_dataset(path, ENCODER, TOKENIZER).samples
    assert [sample.metric for sample in samples] == ["cosine", "cosine"]
    assert len(samples[1].inputs["input_ids"]) == 16


def test_answers_label_only_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"prompt": "# add: 1 + 1 ->", "answer": " 002\n", "task": "sums"}) + "\n")
    (sample,) = load_dataset(path, DECODER, TOKENIZER).samples
    assert sample.labels is not None
    labelled = sample.labels != IGNORED_LABEL
    assert sample.group == "sums"
    assert labelled.argmax() > 0
    assert labelled[labelled.argmax() :].all()


@pytest.mark.parametrize(
    "line", ["not json", "[]", '{"prompt": "x"}', '{"prompt": "", "answer": "y"}', '{"answer": 3, "prompt": 4}']
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"line 2|empty side"):
        load_dataset(path, DECODER, TOKENIZER)


@pytest.mark.parametrize("name", ["missing.txt", "demo:nothing", "weights.bin"])
def test_unknown_data_says_what_there_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    source = name if name.startswith("demo:") else tmp_path / name
    with pytest.raises(DataError, match=r"demo:code-lm|\.jsonl"):
        load_dataset(source, DECODER, TOKENIZER)


def test_empty_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("")
    with pytest.raises(DataError, match="holds no sample"):
        load_dataset(path, DECODER, TOKENIZER)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    for name in ("text.txt", "items.jsonl"):
        path = tmp_path / name
        path.write_bytes(b'{"text": "\xe9"}')
        with pytest.raises(DataError, match="not UTF-8"):
            load_dataset(path, DECODER, TOKENIZER)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "text.txt").write_text("some text")
    with pytest.raises(DataError, match="is no tokenizer"):
        load_dataset(tmp_path / "text.txt", DECODER, tmp_path)


def test_a_sample_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 5000, "answer": "b"}))
    with pytest.raises(DataError, match=r"a sample has \d+ tokens, but d places 512"):
        load_dataset(path, DECODER, TOKENIZER)


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some words " * 40)
    with pytest.raises(DataError, match="is outside the vocabulary"):
        load_dataset(path, DECODER.model_copy(update={"vocab_size": 3}), TOKENIZER)


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_dataset(path, DECODER, None)


def test_pictures_and_labels_come_from_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, pixel_values=np.zeros((3, 1, 8, 8)), labels=np.array([1, 2, 3]))
    samples = load_dataset(path, VISION, None).samples
    assert [int(sample.labels) for sample in samples if sample.labels is not None] == [1, 2, 3]
    assert samples[0].inputs["pixel_values"].dtype == np.float32


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (2, 1, 8, 8)])
def test_pictures_of_another_shape_or_number_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, pixel_values=np.zeros(shape), labels=np.array([1, 2, 3]))
    with pytest.raises(DataError, match="takes"):
        load_dataset(path, VISION, None)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(DataError, match=r"numpy\.savez"):
        load_dataset(path, VISION, None)


def test_the_demo_splits_share_no_sample() -> None:
    parts = {}
    for split in ("selection", "test"):
        dataset = load_dataset("demo:code-lm", DECODER, TOKENIZER, split=split)
        parts[split] = {sample.inputs["input_ids"].tobytes() for sample in dataset.samples if sample.group == "code"}
        assert {sample.group for sample in dataset.samples} == {"code", *tasks.TASKS}
    assert not parts["selection"] & parts["test"]


def test_a_demo_refuses_another_kind_of_model() -> None:
    with pytest.raises(DataError, match="does not fit"):
        load_dataset("demo:digits-vit", DECODER, TOKENIZER)


def test_digits_are_split_once_and_for_all() -> None:
    sizes = {split: len(digits.read_split(split)[1]) for split in ("train", "selection", "test")}
    assert sizes == {"train": 1197, "selection": 240, "test": 360}
    pixels, _ = digits.read_split("test")
    assert pixels.min() == -1.0
    assert pixels.max() == 1.0


@pytest.mark.parametrize("task", tasks.TASKS)
def test_no_training_item_is_held_out(task: str) -> None:
    held_out = {next(tasks.generate(task, held_out=True, seed=1)).prompt for _ in range(1)}
    stream = tasks.generate(task, held_out=True, seed=5)
    held_out |= {next(stream).prompt for _ in range(300)}
    training = tasks.generate(task, held_out=False, seed=9)
    assert not held_out & {next(training).prompt for _ in range(2000)}


def test_task_answers_are_right() -> None:
    stream = tasks.generate("add", held_out=True, seed=0)
    for _ in range(50):
        item = next(stream)
        left, right = item.prompt.removeprefix("# add: ").removesuffix(" ->").split(" + ")
        assert int(item.answer) == int(left) + int(right)


def test_an_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="copy, lookup, add"):
        next(tasks.generate("divide", held_out=True, seed=0))


def test_held_out_modules_are_not_trained_on() -> None:
    held_out, training = corpus.read_split(held_out=True), corpus.read_split(held_out=False)
    assert 0 < len(held_out) < len(training) / 10
    assert not set(held_out) & set(training) - {""}


def test_a_question_about_a_picture_is_one_line(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "prompt": "Which digit?", "answer": 7, "task": "digit"},
        {"image": "a.png", "prompt": "Even or odd?", "answer": "odd", "choices": ["even", "odd"]},
        {"image": "a.png", "prompt": "Sum?", "answers": ["12", "12", "13"], "metric": "vqa_accuracy"},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    write_processor(tmp_path / "model")
    samples = load_dataset(path, SEEING, tmp_path / "model").samples
    assert [(sample.metric, sample.group) for sample in samples] == [
        ("exact_match", "digit"),
        ("multiple_choice", "answers"),
        ("vqa_accuracy", "answers"),
    ]
    assert all(len(sample.inputs["images"]) == 3 for sample in samples)


def test_a_model_without_eyes_is_asked_about_no_picture(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "a.png")
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"image": "a.png", "prompt": "Which digit?", "answer": 7}))
    with pytest.raises(DataError, match="d reads no pictures"):
        load_dataset(path, DECODER, TOKENIZER)
    path.write_text(json.dumps({"image": "b.png", "prompt": "Which digit?", "answer": 7}))
    with pytest.raises(RequestError, match=r"no picture at .*b\.png"):
        load_dataset(path, DECODER, TOKENIZER)
    path.write_text(json.dumps({"image": "a.png", "prompt": "Which digit?"}))
    with pytest.raises(DataError, match="line 1"):
        load_dataset(path, DECODER, TOKENIZER)


def test_demo_questions_on_digits_share_no_picture(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_processor(folder)
    parts = {}
    for split in ("selection", "test"):
        samples = load_dataset("demo:digits-molmo", SEEING, folder, split=split).samples
        parts[split] = {sample.inputs["images"].tobytes() for sample in samples}
        assert {sample.group for sample in samples} == {"digit", "parity", "larger", "sum", "count", "read"}
    assert not parts["selection"] & parts["test"]
