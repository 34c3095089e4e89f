"""Recording the eager masked reference's answers, and in fp64 how exact they are."""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache

from blockexport.core.masks import DepthMask
from blockexport.core.model import ModelSpec
from blockexport.core.parity import ParityCase, rounding_allowance, tolerance_of
from blockexport.core.pictures import Pictures
from blockexport.masking.made_up import MadeUpPrompts, make_up_crops
from blockexport.masking.masked import masked
from blockexport.models.loaded import LoadedModel

NUM_STEPS = 8
_PROMPT_TOKENS = 12
_PADDED_LENGTHS = (12, 5, 9)
_BATCH = 3
Rounding = Callable[[LoadedModel], AbstractContextManager[None]]
MakeUp = Callable[[ModelSpec, tuple[int, ...], np.random.Generator], MadeUpPrompts]

# A recording holds logits of this many vocabulary entries; the most likely token is taken over all of them.
_MAX_COLUMNS = 256


class _InDouble(TorchFunctionMode):
    """Turns every cast to fp32 that a model asks for into one to fp64, so that no step of it rounds to fp32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        widened = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        named = {key: torch.float64 if arg is torch.float32 else arg for key, arg in (kwargs or {}).items()}
        return func(*widened, **named)


class Oracle:
    """The reference in fp32 and in fp64, for any mask of one model.

    Args:
        model: the unpruned model.
        seed: seed of the inputs.
        engine_rounding: while it is entered, a model rounds as the engines are documented to do beyond fp32, such as
            activations to integers; how far that moves the answers decides the tolerance.
    """

    def __init__(self, model: LoadedModel, seed: int, engine_rounding: Rounding | None = None) -> None:
        self._model = model
        self._seed = seed
        self._engine_rounding = engine_rounding
        # A deep copy in fp64 is the one place where a model is held a second time.
        exact: Any = copy.deepcopy(model.module).double()
        config = exact.config.get_text_config(decoder=True)
        if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
            # The fast way of computing experts exists for fp32 and less.
            exact.set_experts_implementation("eager")
        self._exact = LoadedModel(exact, model.spec, model.adapter)

    def record(self, mask: DepthMask) -> tuple[ParityCase, ...]:
        """Answers of the reference under a mask, each with the tolerance it implies."""
        with torch.no_grad():
            if self._model.spec.kind == "decoder":
                return self._decoder_cases(mask)
            return (self._single_pass_case(mask),)

    def _single_pass_case(self, mask: DepthMask) -> ParityCase:
        spec = self._model.spec
        rng = np.random.default_rng(self._seed)
        inputs: dict[str, NDArray[Any]]
        if spec.kind == "vision" and spec.vision is not None:
            inputs = make_up_crops(spec.vision, _BATCH, rng)
        elif spec.kind == "vision":
            inputs = {"pixel_values": rng.standard_normal((_BATCH, *spec.image_shape)).astype(np.float32)}
        else:
            lengths = np.array(_PADDED_LENGTHS)
            attention_mask = (np.arange(_PROMPT_TOKENS) < lengths[:, None]).astype(np.int64)
            tokens = rng.integers(0, spec.vocab_size, (_BATCH, _PROMPT_TOKENS))
            inputs = {"input_ids": tokens, "attention_mask": attention_mask}
        with masked(self._model, mask):
            expected = self._output(self._model, inputs)
        with masked(self._exact, mask), _InDouble():
            exact = self._output(self._exact, inputs)
        expected, exact = _blank_padding(expected, inputs), _blank_padding(exact, inputs)
        none = np.zeros(0, np.int64)
        rounded = None
        if self._engine_rounding is not None:
            with masked(self._model, mask), self._engine_rounding(self._model):
                rounded = self._output(self._model, inputs)
        tolerance = tolerance_of(expected, exact) + rounding_allowance(_blank_padding(rounded, inputs), exact)
        return ParityCase("forward", inputs, expected, none, none, tolerance)

    @staticmethod
    def _output(model: LoadedModel, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        dtype = next(model.module.parameters()).dtype
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        output: NDArray[Any] = getattr(model(**tensors), model.spec.output).numpy()
        return output

    def _decoder_cases(self, mask: DepthMask) -> tuple[ParityCase, ...]:
        cases = self._cases_of(mask, MadeUpPrompts.of_text, "")
        if self._model.spec.vision is None:
            return cases
        return (*cases, *self._cases_of(mask, MadeUpPrompts.with_pictures, "pictures-"))

    def _cases_of(self, mask: DepthMask, make_up: MakeUp, prefix: str) -> tuple[ParityCase, ...]:
        """One prompt alone, then with decode steps, then several, and then what was decoded as one chunk."""

        def prompts(lengths: tuple[int, ...]) -> MadeUpPrompts:
            return make_up(self._model.spec, lengths, np.random.default_rng(self._seed))

        single, ragged = prompts(_PADDED_LENGTHS[:1]), prompts(_PADDED_LENGTHS)
        first_only = self._decoder_case(f"{prefix}prefill", mask, single, num_steps=0)
        decode = self._decoder_case(f"{prefix}decode", mask, single, num_steps=NUM_STEPS)
        padded = self._decoder_case(f"{prefix}padded", mask, ragged, num_steps=NUM_STEPS)
        chunked = ParityCase(
            f"{prefix}chunked",
            decode.inputs,
            decode.expected[:, -1:],
            decode.argmax[:, -1:],
            decode.columns,
            decode.tolerance,
        )
        return first_only, decode, padded, chunked

    def _decoder_case(self, check: str, mask: DepthMask, prompts: MadeUpPrompts, num_steps: int) -> ParityCase:
        spec = self._model.spec
        with masked(self._model, mask):
            logits, continuation = _generate_cached(self._model, prompts.padded_left, num_steps)
        with masked(self._exact, mask), _InDouble():
            exact = _uncached(self._exact, prompts, continuation)
        rounded = None
        if self._engine_rounding is not None:
            with masked(self._model, mask), self._engine_rounding(self._model):
                rounded = _uncached(self._model, prompts, continuation)
        rng = np.random.default_rng(self._seed)
        columns = np.sort(rng.permutation(spec.vocab_size)[:_MAX_COLUMNS]).astype(np.int64)
        return ParityCase(
            check,
            {"prompt": prompts.tokens, "lengths": prompts.lengths, "continuation": continuation, **prompts.pictures},
            np.ascontiguousarray(logits[:, :, columns]),
            logits.argmax(-1).astype(np.int64),
            columns,
            tolerance_of(logits, exact) + rounding_allowance(rounded, exact),
        )


def _blank_padding(output: NDArray[Any] | None, inputs: Mapping[str, NDArray[Any]]) -> Any:
    """Zeros at padding positions: what stands there is nobody's business."""
    if output is None or "attention_mask" not in inputs or output.ndim != 3:
        return output
    return output * inputs["attention_mask"][:, :, None].astype(output.dtype)


def _generate_cached(
    model: LoadedModel, prompts: MadeUpPrompts, num_steps: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Greedy cached generation as transformers users do it: padded on the left, with an attention mask."""
    width = prompts.tokens.shape[1]
    attention_mask = torch.from_numpy((np.arange(width) >= (width - prompts.lengths)[:, None]).astype(np.int64))
    tokens = torch.from_numpy(prompts.tokens)
    positions = _positions(model, prompts, attention_mask)
    pictures = prompts.pictures
    cache = DynamicCache(config=model.module.config)
    collected, chosen = [], []
    for step in range(num_steps + 1):
        text = {"input_ids": tokens, "attention_mask": attention_mask, "position_ids": positions}
        output = model(**_arguments(model, text, pictures), past_key_values=cache, use_cache=True)
        collected.append(output.logits[:, -1])
        if step < num_steps:
            tokens = _likeliest_text(model, output.logits[:, -1:])
            chosen.append(tokens)
            attention_mask = torch.cat([attention_mask, torch.ones_like(tokens)], dim=1)
            positions = positions[..., -1:] + 1
            pictures = {}
    continuation = torch.cat(chosen, dim=1).numpy() if chosen else np.zeros((len(prompts.tokens), 0), np.int64)
    return torch.stack(collected, dim=1).numpy(), continuation


def _likeliest_text(model: LoadedModel, logits: torch.Tensor) -> torch.Tensor:
    """The most likely tokens, without the one that stands for a picture: in a whole sequence it would ask for one."""
    vision = model.spec.vision
    if vision is not None and vision.image_token is not None and vision.image_token < model.spec.vocab_size:
        logits = logits.clone()
        logits[..., vision.image_token] = float("-inf")
    return logits.argmax(-1)


def _uncached(model: LoadedModel, prompts: MadeUpPrompts, continuation: NDArray[np.int64]) -> NDArray[Any]:
    """The same logits row by row, without cache and without padding."""
    rows = []
    for row, following in enumerate(continuation):
        alone = prompts.row(row)
        tokens = torch.from_numpy(np.concatenate([alone.tokens[0], following]))[None]
        output = model(**_arguments(model, {"input_ids": tokens}, alone.pictures), use_cache=False)
        rows.append(output.logits[0, alone.lengths[0] - 1 :].numpy())
    return np.stack(rows)


def _positions(model: LoadedModel, prompts: MadeUpPrompts, attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions (batch, seq) without padding; (3, batch, seq) of pictures, for a model that counts rows and columns.

    The uncached run in fp64 is not told any, so whatever is wrong here is seen there.
    """
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    vision = model.spec.vision
    pictures = Pictures.of_batch(prompts.pictures, None if vision is None else vision.grid)
    if pictures is None or pictures.shifts is None:
        return positions
    return positions + torch.from_numpy(pictures.shifts.columns(0, positions.shape[1]))


def _arguments(
    model: LoadedModel, text: Mapping[str, torch.Tensor], pictures: Mapping[str, NDArray[Any]]
) -> dict[str, torch.Tensor]:
    """A batch as the model's own forward takes it, pictures in the precision of the model."""
    dtype = next(model.module.parameters()).dtype
    tensors = {name: torch.from_numpy(array) for name, array in pictures.items()}
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    return model.arguments({**text, **tensors})
