"""Training batches: all questions about a picture share one sequence, and none sees another.

As Molmo was trained (arXiv:2409.17146, section 3): the picture's tokens come once, each question with its answer
follows at the positions it would have alone, and attends to the picture and itself.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from blockexport.core.data import IGNORED_LABEL, pad_stack, stack_pictures
from blockexport.models.demos.digits_molmo.data import TASKS, Scene
from blockexport.processing.crops import cut_picture
from blockexport.processing.layout import token_indices
from blockexport.processing.processor import MolmoProcessor
from blockexport.processing.samples import answer_tokens


class PackedBatches:
    """Scenes to model inputs and labels.

    Args:
        processor: of the checkpoint to be.
    """

    def __init__(self, processor: MolmoProcessor) -> None:
        self._processor = processor
        self._prompts = {name: processor.prompt_tokens(task.question) for name, task in TASKS.items()}

    def pack(
        self, scenes: Sequence[Scene], emphasis: Mapping[str, float] | None = None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Inputs of a forward, labels (batch, seq) of what each position is to say next, and the labels' weights.

        Args:
            scenes: one for each row.
            emphasis: weights of tasks; 1 for those left out.
        """
        rows = [self._pack_scene(scene, emphasis or {}) for scene in scenes]
        arrays: dict[str, NDArray[np.generic]] = {
            "input_ids": pad_stack([row["input_ids"] for row in rows], -1),
            "position_ids": pad_stack([row["position_ids"] for row in rows], 0),
            **stack_pictures(rows),
        }
        owner = pad_stack([row["owner"] for row in rows], -1)
        # The picture belongs to all.
        seen = (owner[:, None, :] == owner[:, :, None]) | (owner[:, None, :] == 0)
        arrays["attention_bias"] = np.tril(seen)[:, None]
        labels = pad_stack([row["labels"] for row in rows], IGNORED_LABEL)
        weights = pad_stack([row["weights"] for row in rows], 0)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return tensors, torch.from_numpy(labels), torch.from_numpy(weights)

    def crops(self, scenes: Sequence[Scene]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Pictures of the size of a crop as one crop each: inputs of the vision side, and the digits (batch,)."""
        geometry = self._processor.geometry
        cut = [cut_picture(scene.picture, geometry) for scene in scenes]
        # The whole view is all there is to see.
        images, masks = (np.stack([parts[i][:1] for parts in cut]) for i in (0, 1))
        places = token_indices((1, 1), geometry)[None, :1].repeat(len(scenes), axis=0)
        arrays = {"images": images, "image_masks": masks, "image_input_idx": places}
        digits = torch.tensor([scene.digits[0] for scene in scenes])
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, digits

    def _pack_scene(self, scene: Scene, emphasis: Mapping[str, float]) -> dict[str, NDArray[np.generic]]:
        row = self._processor(TASKS["count"].question, [scene.picture])
        num_shared = len(row["input_ids"]) - len(self._prompts["count"])
        tokens: list[NDArray[np.generic]] = [row["input_ids"][:num_shared]]
        positions: list[NDArray[np.generic]] = [np.arange(num_shared)]
        owner: list[NDArray[np.generic]] = [np.zeros(num_shared, np.int64)]
        labels: list[NDArray[np.generic]] = [np.full(num_shared, IGNORED_LABEL)]
        weights: list[NDArray[np.generic]] = [np.zeros(num_shared, np.float32)]
        asked = [name for name, task in TASKS.items() if len(scene.digits) in task.counts]
        for number, name in enumerate(asked, start=1):
            reply = answer_tokens(TASKS[name].answer(scene.digits), self._processor)
            # The end token is said, never read.
            segment = np.array(self._prompts[name] + reply[:-1])
            tokens.append(segment)
            positions.append(num_shared + np.arange(len(segment)))
            owner.append(np.full(len(segment), number))
            weights.append(np.full(len(segment), emphasis.get(name, 1.0), np.float32))
            labels.append(np.array([IGNORED_LABEL] * (len(segment) - len(reply)) + reply))
        pictures = {name: array for name, array in row.items() if name != "input_ids"}
        parts = {"input_ids": tokens, "position_ids": positions, "owner": owner, "labels": labels, "weights": weights}
        return {**pictures, **{name: np.concatenate(arrays) for name, arrays in parts.items()}}
