"""Finding the blocks, the kind and the cache layout of a model from its module tree."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertLMHeadModel, BertModel, PreTrainedConfig

from blockexport.errors import ModelSupportError
from blockexport.models.adapter import TreeAdapter, resolve_adapter
from blockexport.testing.tiny_models import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_are_in_order_and_of_one_class(architecture: str) -> None:
    model = tiny_model(architecture, 3)
    blocks = resolve_adapter(model).blocks(model)
    assert len(blocks) == 3
    assert len({type(block) for block in blocks}) == 1
    indices = [child.layer_idx for block in blocks for child in block.modules() if hasattr(child, "layer_idx")]
    assert indices == sorted(indices)


def test_a_list_of_other_length_is_not_taken_for_the_blocks() -> None:
    model = tiny_model("llama", 3)
    model.decoys = nn.ModuleList([nn.Linear(2, 2) for _ in range(4)])
    assert TreeAdapter().blocks(model) is model.model.layers


def test_two_lists_that_could_be_the_blocks_are_refused() -> None:
    model = tiny_model("llama", 3)
    model.twins = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    with pytest.raises(ModelSupportError, match=r"found: (model\.layers, twins|twins, model\.layers)"):
        TreeAdapter().blocks(model)


def test_a_model_without_a_count_of_blocks_is_refused() -> None:
    model = tiny_model("llama", 2)
    model.config = PreTrainedConfig()
    with pytest.raises(ModelSupportError, match="num_hidden_layers"):
        TreeAdapter().blocks(model)


def test_bert_is_a_decoder_only_where_its_configuration_says_so() -> None:
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    assert TreeAdapter().kind(BertModel(BertConfig(**sizes))) == "encoder"
    assert TreeAdapter().kind(BertLMHeadModel(BertConfig(**sizes, is_decoder=True))) == "decoder"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_refused_for_export(dtype: torch.dtype) -> None:
    with pytest.raises(ModelSupportError, match=f"holds weights in {dtype}"):
        TreeAdapter().prepare_for_export(tiny_model("llama", 2).to(dtype))
