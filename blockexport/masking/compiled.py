"""A level for those who stay in PyTorch: `torch.compile` over the baked module, its cache a static one."""

from typing import Any

import torch
from torch import nn
from transformers import StaticCache

from blockexport.core.masks import DepthMask
from blockexport.errors import ConfigError, RequestError
from blockexport.masking.bake import bake
from blockexport.models.loaded import LoadedModel, as_loaded


def compile_level(
    model: LoadedModel | nn.Module,
    mask: DepthMask,
    *,
    capacity_tokens: int = 256,
    backend: str = "inductor",
    mode: str | None = None,
) -> "CompiledLevel":
    """Compile the decode step of one level, where the model lies; weights are shared with the model.

    Args:
        model: a decoder.
        mask: which blocks stay.
        capacity_tokens: what a row of the cache holds.
        backend: of `torch.compile`.
        mode: of `torch.compile`; None for CUDA graphs (`reduce-overhead`) on a GPU and the default on a processor.

    Raises:
        ConfigError: the model is no decoder.
        MaskError: the mask is for another number of blocks.
    """
    loaded = as_loaded(model)
    if loaded.spec.kind != "decoder":
        msg = f"{loaded.spec.name} is no decoder; compile what bake() returns, it has no cache to keep"
        raise ConfigError(msg)
    baked = bake(loaded, mask)
    if mode is None and backend == "inductor" and next(baked.parameters()).is_cuda:
        mode = "reduce-overhead"
    step = torch.compile(baked, fullgraph=True, dynamic=False, backend=backend, mode=mode)
    return CompiledLevel(baked, step, capacity_tokens)


class CompiledLevel:
    """One level of one cache. The prompt runs eagerly, since its length differs from one to the next.

    Args:
        baked: the module.
        compiled: the same, compiled.
        capacity_tokens: what a row of the cache holds.
    """

    def __init__(self, baked: nn.Module, compiled: Any, capacity_tokens: int) -> None:
        self._baked = baked
        self._compiled = compiled
        self._capacity = capacity_tokens
        self._cache: Any = None
        self._places = torch.zeros(0)

    @property
    def num_tokens(self) -> int:
        """Tokens of each row so far."""
        return int(self._places[0, 0]) + 1 if self._places.numel() else 0

    @torch.no_grad()
    def start(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Forget what was, and run prompts of one length (batch, tokens); logits (batch, vocab) of the last.

        Raises:
            RequestError: the cache cannot hold them.
        """
        self._require(input_ids.shape[1])
        if self._cache is None or self._places.shape[0] != input_ids.shape[0]:
            self._cache = StaticCache(config=self._baked.config, max_cache_len=self._capacity)
        else:
            # The same memory: a captured graph refers to it.
            self._cache.reset()
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
        logits = self._run(self._baked, input_ids, places)
        self._places = places[:, -1:].clone()
        return logits

    @torch.no_grad()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """One more token a row, (batch, 1); logits (batch, vocab), which the next step may overwrite.

        Raises:
            RequestError: the cache is full, or no prompt was run.
        """
        if not self.num_tokens:
            msg = "no prompt was run; call start() first"
            raise RequestError(msg)
        self._require(self.num_tokens + 1)
        self._places += 1
        torch.compiler.cudagraph_mark_step_begin()
        return self._run(self._compiled, tokens, self._places)

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        """The most likely continuation (batch, max_new_tokens) of prompts (batch, tokens).

        Raises:
            RequestError: the cache cannot hold it.
        """
        self._require(input_ids.shape[1] + max_new_tokens - 1)
        chosen = [self.start(input_ids).argmax(-1, keepdim=True)]
        for _ in range(max_new_tokens - 1):
            chosen.append(self.step(chosen[-1]).argmax(-1, keepdim=True))
        return torch.cat(chosen, dim=1)

    def _run(self, module: Any, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        output = module(
            input_ids=tokens, position_ids=places, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _require(self, tokens: int) -> None:
        if tokens > self._capacity:
            msg = f"{tokens} tokens do not fit a cache of {self._capacity}; give compile_level a larger capacity_tokens"
            raise RequestError(msg)
