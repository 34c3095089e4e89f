"""The masked model as the oracle of everything that drops blocks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from blockexport.core.data import Dataset
from blockexport.core.masks import DepthMask
from blockexport.masking.masked import masked
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.testing.tiny_data import tiny_dataset
from blockexport.testing.tiny_models import tiny_model


@pytest.fixture
def llama() -> LoadedModel:
    return wrap_module(tiny_model("llama"))


@pytest.fixture
def texts() -> Dataset:
    return tiny_dataset("decoder", num_samples=7)


@pytest.fixture
def masked_forward() -> Callable:
    """Make a `core.quality.Forward` of a model under a mask, which never reuses anything."""

    def make(model: LoadedModel, mask: DepthMask) -> Callable:
        def forward(inputs):
            with masked(model, mask), torch.no_grad():
                output = model(**{name: torch.from_numpy(np.asarray(array)) for name, array in inputs.items()})
            return getattr(output, model.spec.output).numpy()

        return forward

    return make
