"""Packed questions are answered as if each were asked alone."""

import numpy as np
import pytest
import torch

from blockexport.core.data import IGNORED_LABEL, collate
from blockexport.models.demos.digits_molmo.batches import PackedBatches
from blockexport.models.demos.digits_molmo.data import TASKS, SceneSource
from blockexport.models.demos.digits_molmo.losses import encode_pictures
from blockexport.models.demos.digits_molmo.recipe import model_entries, write_processor
from blockexport.models.demos.digits_molmo.tokenizer import PICTURE_TOKENS
from blockexport.models.molmo.config import MolmoConfig
from blockexport.models.molmo.model import MolmoForCausalLM
from blockexport.processing.samples import question_sample


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return write_processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    entries = model_entries(processor.tokenizer.get_vocab_size() - len(PICTURE_TOKENS)) | {"num_hidden_layers": 2}
    return MolmoForCausalLM(MolmoConfig(published=entries)).double().eval()


def test_a_packed_question_gets_the_logits_it_gets_alone(processor, model):
    source = SceneSource("train", 5)
    scenes = [source.draw((count,)) for count in (1, 2, 4)]
    inputs, labels, _ = PackedBatches(processor).pack(scenes)
    inputs["images"] = inputs["images"].double()
    with torch.no_grad():
        packed = model(**inputs, use_cache=False).logits
    for row, scene in enumerate(scenes):
        asked = [name for name, task in TASKS.items() if len(scene.digits) in task.counts]
        rows = packed[row][labels[row] != IGNORED_LABEL]
        alone, wanted = [], []
        for name in asked:
            batch = collate([question_sample(scene.question(name), processor)], pad_token=0)
            tensors = {key: torch.from_numpy(array) for key, array in batch.inputs.items()}
            tensors["images"] = tensors["images"].double()
            with torch.no_grad():
                logits = model(**tensors, use_cache=False).logits[0]
            said = batch.labels[0] != IGNORED_LABEL
            wanted += batch.labels[0][said].tolist()
            alone.append(logits[torch.from_numpy(np.flatnonzero(said) - 1)])
        assert labels[row][labels[row] != IGNORED_LABEL].tolist() == wanted
        # Another order of summation in fp64, nothing else.
        torch.testing.assert_close(rows, torch.cat(alone), rtol=1e-9, atol=1e-9)


def test_crops_of_padding_are_not_computed_and_nothing_else_changes(processor, model):
    source = SceneSource("train", 6)
    inputs, _, _ = PackedBatches(processor).pack([source.draw((count,)) for count in (1, 4, 1)])
    images, masks = inputs["images"].double(), inputs["image_masks"]
    assert (images == -1).flatten(2).all(2).any()
    with torch.no_grad():
        ours, whole = encode_pictures(model, images, masks), model.encode_images(images, masks)
    kept = inputs["image_input_idx"] >= 0
    torch.testing.assert_close(ours[kept], whole[kept], rtol=1e-9, atol=1e-9)


def test_the_answers_of_a_task_can_weigh_more(processor):
    scene = SceneSource("train", 7).draw((2,))
    batches = PackedBatches(processor)
    _, labels, plain = batches.pack([scene])
    _, _, weighed = batches.pack([scene], {"sum": 3.0})
    said = labels != IGNORED_LABEL
    assert (plain[said] == 1).all()
    # A sum is one token and the end.
    assert sorted(weighed[said].tolist()) == [1.0] * (int(said.sum()) - 2) + [3.0] * 2
