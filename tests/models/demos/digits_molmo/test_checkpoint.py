"""The shipped weights do what their card says."""

import json

import numpy as np
import pytest
import torch

from blockexport.core.data import IGNORED_LABEL
from blockexport.core.questions import judge
from blockexport.models.demos import demo_path
from blockexport.models.demos.digits_molmo.data import TASKS, questions
from blockexport.models.demos.digits_molmo.evaluate import answers, exact_match
from blockexport.models.demos.digits_molmo.recipe import model_entries, write_processor
from blockexport.models.loading import load_model
from blockexport.processing.processor import MolmoProcessor, collate

FOLDER = demo_path("demo:digits-molmo")
MAX_WEIGHTS_BYTES = 12_000_000


@pytest.fixture(scope="module")
def model():
    return load_model("demo:digits-molmo")


@pytest.fixture(scope="module")
def processor():
    return MolmoProcessor.from_folder(FOLDER)


def test_the_weights_are_small_and_in_the_published_layout(model):
    from safetensors import safe_open

    assert (FOLDER / "model.safetensors").stat().st_size < MAX_WEIGHTS_BYTES
    with safe_open(FOLDER / "model.safetensors", framework="np") as file:
        names = set(file.keys())
    assert {
        "model.transformer.wte.embedding",
        "model.transformer.wte.new_embedding",
        "model.transformer.blocks.15.att_proj.bias",
        "model.transformer.ff_out.weight",
        "model.vision_backbone.image_vit.transformer.resblocks.3.attention.wq.weight",
        "model.vision_backbone.image_pooling_2d.wq.weight",
        "model.vision_backbone.pad_embed",
    } <= names
    assert model.spec.num_blocks == 16


def test_the_files_beside_the_weights_are_those_of_the_script(tmp_path):
    write_processor(tmp_path)
    for path in tmp_path.iterdir():
        assert (FOLDER / path.name).read_bytes() == path.read_bytes()
    entries = json.loads((FOLDER / "config.json").read_text())
    for name, value in model_entries(entries["vocab_size"]).items():
        assert entries[name] == value


def test_the_card_states_the_figures_of_the_record():
    held_out = json.loads((FOLDER / "training.json").read_text())["metrics"]["held_out"]
    card = (FOLDER / "README.md").read_text()
    assert set(held_out) == set(TASKS)
    for task, share in held_out.items():
        assert f"| {task} | {100 * share:.1f} % |" in card
    assert all(held_out[task] >= 0.9 for task in ("digit", "parity", "larger", "sum"))


def test_held_out_questions_are_answered_as_the_record_says(model, processor):
    dataset = answers("test", 40, processor, seed=5)
    figures = exact_match(model.module, dataset)
    stated = json.loads((FOLDER / "training.json").read_text())["metrics"]["held_out"]
    for task, share in stated.items():
        # Four standard errors of a share among 40.
        assert figures[task] >= share - 4 * np.sqrt(max(share * (1 - share), 1 / 40) / 40)


def test_generation_gives_what_one_forward_promises(model, processor):
    """The metric reads answers off one forward; generating them token by token must come to the same."""
    dataset = answers("test", 3, processor, seed=7)
    asked = list(questions("test", tuple(TASKS), 3, seed=7))
    for question, sample in zip(asked, dataset.samples, strict=True):
        inputs = {
            k: torch.from_numpy(v) for k, v in collate([processor(question.question, [question.picture])]).items()
        }
        with torch.no_grad():
            tokens = model.module.generate(**inputs, max_new_tokens=8, do_sample=False)[
                0, inputs["input_ids"].shape[1] :
            ]
            batch = {k: torch.from_numpy(v[None]) for k, v in sample.inputs.items()}
            logits = model.module(**batch, use_cache=False).logits[0]
        labelled = np.flatnonzero(sample.labels != IGNORED_LABEL)
        promised = bool((logits[labelled - 1].argmax(-1).numpy() == sample.labels[labelled]).all())
        assert judge(question, processor.tokenizer.decode(tokens.tolist())) == float(promised)
