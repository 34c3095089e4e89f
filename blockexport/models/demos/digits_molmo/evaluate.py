"""What the `demo:digits-molmo` card states: exact match of the answers to each task."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from blockexport.core.data import Dataset
from blockexport.core.quality import evaluate
from blockexport.models.demos.digits_molmo.data import TASKS, questions
from blockexport.models.demos.digits_vit.data import Split
from blockexport.processing.processor import MolmoProcessor
from blockexport.processing.samples import question_sample


def answers(split: Split, num_questions: int, processor: MolmoProcessor, seed: int = 1) -> Dataset:
    """Questions of every task on the digits of one split; the card's are those of seed 1."""
    asked = questions(split, tuple(TASKS), num_questions, seed)
    return Dataset(split, tuple(question_sample(question, processor) for question in asked))


def exact_match(model: nn.Module, dataset: Dataset) -> dict[str, float]:
    """Share of the questions of each task that greedy decoding answers right to the end token."""

    def forward(inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.no_grad():
            logits: NDArray[np.float32] = model(**tensors, use_cache=False).logits.float().numpy()
        return logits

    figures = evaluate(forward, dataset, batch_size=32).metrics
    return {task: figures[f"exact_match/{task}"].value for task in TASKS}
