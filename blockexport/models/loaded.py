"""A model in memory, with what the stages need to know about it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blockexport.core.masks import DepthMask
from blockexport.core.model import ModelSpec
from blockexport.core.pictures import PICTURE_INPUTS
from blockexport.errors import MaskError, ModelSupportError, RequestError
from blockexport.models.adapter import ModelAdapter, PictureAdapter, adapted_architectures, resolve_adapter
from blockexport.models.skip import ACTIVE_MASK
from blockexport.models.vision_side import VisionSideAdapter

_PICTURES = {"images", "image_masks", "image_input_idx", "image_features", "pixel_values"}


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """One trained model; calling it calls the module.

    Attributes:
        module: the `nn.Module` underneath, the stock transformers class where there is one.
        spec: identity and shape.
        adapter: the architecture's seam.
        tokenizer_dir: folder holding `tokenizer.json`, if the checkpoint has one.
    """

    module: nn.Module
    spec: ModelSpec
    adapter: ModelAdapter
    tokenizer_dir: Path | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module.

        Raises:
            RequestError: pictures were given to a model that reads text only, which transformers would pass over.
        """
        self._check_pictures(kwargs)
        return self.adapter.run(self.module, *args, **kwargs)

    def arguments(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs as the module's own forward takes them: pictures of any model come as the same three arrays."""
        pictures = {name: tensor for name, tensor in inputs.items() if name in PICTURE_INPUTS}
        if not pictures or not isinstance(self.adapter, PictureAdapter):
            return dict(inputs)
        others = {name: tensor for name, tensor in inputs.items() if name not in pictures}
        return others | self.adapter.picture_arguments(self.module, pictures, others)

    @property
    def vision_side(self) -> "LoadedModel | None":
        """The vision side as a model by itself, around the same module; None for models that read one thing."""
        spec = self.spec.vision_side
        if spec is None or not isinstance(self.adapter, PictureAdapter):
            return None
        return LoadedModel(self.module, spec, VisionSideAdapter(self.adapter))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate by transformers' own loop, which the module brings.

        Raises:
            RequestError: the model generates nothing, or pictures were given to a model that reads text only.
        """
        if self.spec.kind != "decoder":
            msg = f"{self.spec.name} is no decoder and generates nothing; call the model instead"
            raise RequestError(msg)
        self._check_pictures(kwargs)
        module: Any = self.module
        return module.generate(*args, **kwargs)

    def _check_pictures(self, given: Mapping[str, Any]) -> None:
        pictures = sorted(_PICTURES & given.keys())
        if pictures and self.spec.kind != "vision" and self.spec.vision is None:
            msg = (
                f"{', '.join(pictures)} were given, but {self.spec.name} reads text only; leave pictures out, or take "
                f"a model whose pictures an adapter knows: {', '.join(adapted_architectures())}"
            )
            raise RequestError(msg)

    @property
    def blocks(self) -> nn.ModuleList:
        """The prunable blocks, in order."""
        return self.adapter.blocks(self.module)

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return self.spec.num_blocks

    def check_mask(self, mask: DepthMask) -> None:
        """Refuse a mask of another model size, or one that the configuration's per-block lists cannot follow.

        Raises:
            MaskError: the sizes differ.
            ModelSupportError: a per-block list in the configuration does not have one entry per block.
        """
        if mask.num_blocks != self.num_blocks:
            msg = f"the mask is for {mask.num_blocks} blocks, but {self.spec.name} has {self.num_blocks}"
            raise MaskError(msg)
        if self.spec.kind != "vision":
            check_per_block_lists(self.module, self.num_blocks)


# Lists that transformers' configurations index by block.
_PER_BLOCK_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers", "attention_layers", "layers_block_type")


def check_per_block_lists(module: nn.Module, num_blocks: int) -> None:
    """Check that every per-block list in the configuration has one entry per block.

    Raises:
        ModelSupportError: one has not; masking would pair blocks with other blocks' settings.
    """
    config: Any = module.config
    config = config.get_text_config(decoder=True)
    for name in _PER_BLOCK_LISTS:
        entries = getattr(config, name, None)
        if entries is not None and len(entries) != num_blocks:
            msg = (
                f"config.{name} has {len(entries)} entries for {num_blocks} blocks; "
                "every per-block list must have one entry per block, correct config.json"
            )
            raise ModelSupportError(msg)


def wrap_module(
    module: nn.Module, *, name: str = "", tokenizer_dir: Path | None = None, digest: str = ""
) -> LoadedModel:
    """Make a `LoadedModel` of a transformers module that is already in memory.

    Raises:
        MaskError: a mask is applied to the module.
        ModelSupportError: the architecture has no recognisable blocks.
    """
    if any(name.startswith(ACTIVE_MASK) for name in vars(module)):
        msg = "this model already has a mask applied; remove it first, masks do not nest"
        raise MaskError(msg)
    module.eval()
    adapter = resolve_adapter(module)
    blocks = adapter.blocks(module)
    check_per_block_lists(module, len(blocks))
    config: Any = module.config
    text = config.get_text_config(decoder=True)
    kind = adapter.kind(module)
    spec = ModelSpec(
        name=name or type(module).__name__,
        architecture=type(module).__name__,
        kind=kind,
        num_blocks=len(blocks),
        digest=digest or digest_module(module),
        block_path=next(path for path, child in module.named_modules() if child is blocks),
        kv=adapter.kv_layout(module),
        vocab_size=0 if kind == "vision" else text.vocab_size,
        context_tokens=0 if kind == "vision" else int(getattr(text, "max_position_embeddings", 0) or 0),
        image_shape=_image_shape(config) if kind == "vision" else (),
        output=_output_name(module),
        stop_tokens=_stop_tokens(module, text),
        pad_token=_pad_token(text),
        num_extra_tokens=_num_extra_tokens(module, text.vocab_size) if kind == "decoder" else 0,
        vision=adapter.vision(module),
    )
    return LoadedModel(module, spec, adapter, tokenizer_dir)


def as_loaded(model: "LoadedModel | nn.Module") -> LoadedModel:
    """Accept a bare transformers module wherever a `LoadedModel` is wanted."""
    return model if isinstance(model, LoadedModel) else wrap_module(model)


def digest_module(module: nn.Module) -> str:
    """SHA-256 over the configuration and every parameter and buffer, in name order; shapes only on the meta device."""
    state = hashlib.sha256()
    config: Any = module.config
    settings = config.to_dict()
    # Where a checkpoint lies and which library version wrote it do not change the model.
    volatile = {"_name_or_path", "transformers_version", "_attn_implementation_autoset"}
    state.update(repr(sorted((key, str(value)) for key, value in settings.items() if key not in volatile)).encode())
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _num_extra_tokens(module: Any, vocab_size: int) -> int:
    """Embeddings beyond the vocabulary: of ids that are read and never written."""
    return max(0, int(module.get_input_embeddings().weight.shape[0]) - vocab_size)


def _stop_tokens(module: Any, config: Any) -> tuple[int, ...]:
    """What transformers' own generation stops at: chat models name their end of turn in generation_config.json."""
    stop = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    if stop is None:
        stop = getattr(config, "eos_token_id", None)
    return () if stop is None else (int(stop),) if isinstance(stop, int) else tuple(int(token) for token in stop)


def _pad_token(config: Any) -> int:
    """An id that can be embedded; some configurations say -1 for "none"."""
    pad = getattr(config, "pad_token_id", None)
    return pad if isinstance(pad, int) and 0 <= pad < getattr(config, "vocab_size", 0) else 0


def _image_shape(config: Any) -> tuple[int, ...]:
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return (config.num_channels, height, width)


def _output_name(module: nn.Module) -> Any:
    """Heads give logits; a bare trunk gives hidden states. A head is what the trunk's class lacks."""
    return "last_hidden_state" if getattr(module, "base_model", module) is module else "logits"
