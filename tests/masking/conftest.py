"""The oracle of masking: a model that was never deeper, made of the kept blocks' weights."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from blockexport.core.masks import DepthMask
from blockexport.models.loaded import LoadedModel

torch.set_num_threads(1)

Remove = Callable[[LoadedModel, DepthMask], PreTrainedModel]


def _remove(model: LoadedModel, mask: DepthMask) -> PreTrainedModel:
    """A new, shallower model. Shares no code with masking: new configuration, stock constructor, renumbered weights."""
    config = copy.deepcopy(model.module.config)
    # Setting a list and the count one after the other would not pass the configuration's own check in between.
    for name in ("layer_types", "_layer_types"):
        if getattr(config, name, None) is not None:
            object.__setattr__(config, name, [getattr(config, name)[block] for block in mask.kept])
    counter = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    object.__setattr__(config, counter, mask.depth)
    smaller = type(model.module)(config)
    new_index = {block: i for i, block in enumerate(mask.kept)}
    pattern = re.compile(rf"^{re.escape(model.spec.block_path)}\.(\d+)\.")
    state = {}
    for name, tensor in model.module.state_dict().items():
        match = pattern.match(name)
        if match is None:
            state[name] = tensor
        elif int(match[1]) in new_index:
            state[f"{model.spec.block_path}.{new_index[int(match[1])]}.{name[match.end() :]}"] = tensor
    smaller.load_state_dict(state)
    return smaller.eval()


@pytest.fixture(scope="session")
def remove() -> Remove:
    """`remove(model, mask)` gives a new, shallower model."""
    return _remove
