"""Levels of one bundle behind one interface: plan, forward, generate."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.bundle.reader import Bundle
from blockexport.core.hardware import HostFingerprint
from blockexport.core.latency import LatencyBudget, LatencyProfile
from blockexport.core.quality import Quality
from blockexport.errors import BudgetInfeasibleError, ProfileError, RequestError
from blockexport.routing.decision import RoutingDecision
from blockexport.routing.policy import RoutingPolicy
from blockexport.routing.request import RoutingRequest
from blockexport.routing.router import plan
from blockexport.runtime.decode_loop import DecodeLoop
from blockexport.runtime.engines import Engines
from blockexport.runtime.prompts import Prompts, pack_prompts, read_prompts, unpack_outputs
from blockexport.runtime.sampling import Sampling
from blockexport.runtime.workload import RuntimeWorkload

_WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Level:
    """One depth of a loaded bundle; `quality` is None when the build measured none."""

    name: str
    depth: int
    kept: tuple[int, ...]
    quality: Quality | None


@dataclass(frozen=True, slots=True)
class Generation:
    """What a request got.

    Attributes:
        tokens: new tokens, without the stop token; one list for one prompt, a list of lists for a batch.
        level: the level that ran.
        observed_ms: from the call to the last token; a level that was not open yet (see `Runtime.warm_up`) is opened
            within it.
        ttft_ms: from the call to the first token.
        decision: why this level; None when the caller named it.
        switches: changes of level on the way, as (token index, level).
    """

    tokens: list[int] | list[list[int]]
    level: str
    observed_ms: float
    ttft_ms: float
    decision: RoutingDecision | None
    switches: tuple[tuple[int, str], ...] = ()


class Runtime:
    """A bundle ready to serve. Not safe for use by several threads at once."""

    def __init__(self, bundle: Bundle, *, threads: int = 0, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.bundle = bundle
        self.spec = bundle.manifest.model
        self.engines = Engines.of_bundle(bundle, threads=threads)
        self._clock = clock
        self.levels = tuple(
            Level(entry.name, entry.depth, entry.kept, Quality.from_json(entry.quality) if entry.quality else None)
            for entry in bundle.manifest.levels
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The bundle's tokenizer, a `tokenizers.Tokenizer`.

        Raises:
            RequestError: the bundle has none.
        """
        folder = self.bundle.tokenizer_folder
        if folder is None:
            msg = f"the bundle of {self.spec.name} has no tokenizer; pass token ids instead of text"
            raise RequestError(msg)
        from tokenizers import Tokenizer  # noqa: PLC0415  (only text needs it)

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Shipped tokenizers often pad and cut to a fixed length of their own.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def level(self, name: str | None) -> Level:
        """The level of that name, the deepest for None.

        Raises:
            RequestError: there is no such level.
        """
        if name is None:
            return self.levels[0]
        for level in self.levels:
            if level.name == name:
                return level
        msg = f"no level {name!r}; this bundle has {', '.join(level.name for level in self.levels)}"
        raise RequestError(msg)

    @cached_property
    def profile(self) -> LatencyProfile:
        """The latency profile of this host.

        Raises:
            ProfileError: this host was not profiled, or the host or bundle has changed since.
        """
        host = HostFingerprint.detect()
        stored = self.bundle.read_profiles().get(host.key)
        if stored is None:
            msg = f"no latency profile of this host in {self.bundle.folder.name}; run `blockexport profile` on it first"
            raise ProfileError(msg)
        profile = LatencyProfile.from_json(stored)
        if profile.bundle_digest != self.bundle.manifest.digest:
            msg = "the latency profile is of another build of this bundle; run `blockexport profile` again"
            raise ProfileError(msg)
        return profile

    def plan(
        self,
        *,
        prompt_tokens: int = 0,
        new_tokens: int = 0,
        budget: LatencyBudget | None = None,
        batch: int = 1,
        policy: str | RoutingPolicy = "deepest-fit",
        min_quality: float | None = None,
    ) -> RoutingDecision:
        """Decide which level serves a request, without running it.

        Args:
            prompt_tokens: tokens of the prompt; 0 for vision.
            new_tokens: tokens to generate; 0 for models that do not.
            budget: what the request may take; None for the deepest level.
            batch: requests served together.
            policy: a policy or its name.
            min_quality: what the level's primary metric must reach.

        Raises:
            ProfileError: this host was not profiled.
            RequestError: the request does not fit the model.
        """
        request = RoutingRequest(prompt_tokens=prompt_tokens, new_tokens=new_tokens, batch=batch)
        return plan(self.profile, self.levels, request, budget, policy, min_quality)

    def warm_up(self, levels: Sequence[str] | None = None) -> None:
        """Open levels and run each once, so that no request pays for that.

        Args:
            levels: their names; None for all.

        Raises:
            RequestError: there is no such level.
        """
        chosen = self.levels if levels is None else [self.level(name) for name in levels]
        workload = RuntimeWorkload(self.engines, self.spec, [(level.name, level.depth) for level in chosen])
        tokens = min(_WARM_UP_TOKENS, self.spec.context_tokens or _WARM_UP_TOKENS)
        for level in chosen:
            if self.spec.kind == "decoder":
                workload.prefill_call(level.name, 1, tokens)()
                workload.decode_call(level.name, 1, tokens - 1)()
            else:
                workload.forward_call(level.name, 1)()

    def forward(self, inputs: Any, level: str | None = None, *, attention_mask: Any = None) -> NDArray[np.float32]:
        """Run a level once on whole inputs.

        Args:
            inputs: token ids (batch, tokens) or pixels (batch, channels, height, width), or a mapping by input name.
            level: name of the level; None for the deepest.
            attention_mask: (batch, tokens), nonzero for real tokens, padding on either side.

        Returns:
            (batch, tokens, vocab) for decoders, else the model's output. Positions of padding hold 0 for decoders.

        Raises:
            RequestError: inputs that the model cannot take.
        """
        if isinstance(inputs, Mapping):
            attention_mask = inputs.get("attention_mask", attention_mask)
            inputs = inputs["pixel_values" if self.spec.kind == "vision" else "input_ids"]
        chosen = self.level(level)
        if self.spec.kind == "vision":
            return self.engines.single_pass(chosen.name).forward({"pixel_values": self._pixels(inputs)})
        run = self.engines.whole_pass(chosen.name)
        if self.spec.kind == "encoder":
            # An encoder places tokens by column, so padding stays where it is.
            tokens, real = read_prompts(inputs, attention_mask, self.spec)
            return run({"input_ids": tokens, "attention_mask": real.astype(np.int64)})
        tokens, lengths, real = pack_prompts(inputs, attention_mask, self.spec)
        packed_mask = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int64)
        return unpack_outputs(run({"input_ids": tokens, "attention_mask": packed_mask}), real)

    def generate(
        self,
        input_ids: Prompts,
        max_new_tokens: int = 16,
        *,
        budget: LatencyBudget | None = None,
        level: str | None = None,
        policy: str | RoutingPolicy = "deepest-fit",
        on_token: Callable[[int, int], None] | None = None,
        sampling: Sampling | None = None,
        stop_tokens: Sequence[int] | None = None,
        attention_mask: Any = None,
    ) -> Generation:
        """Continue prompts.

        Args:
            input_ids: one prompt (tokens,), or several: (batch, tokens) or ragged lists.
            max_new_tokens: at most this many for each row.
            budget: picks the level; without it and without `level`, the deepest runs.
            level: name of the level to run, whatever the budget.
            policy: how the budget picks.
            on_token: called as (row, token) as soon as a token is there.
            sampling: how tokens are drawn; None for the most likely.
            stop_tokens: ids that end a row; None for the model's own.
            attention_mask: (batch, tokens), nonzero for real tokens.

        Raises:
            BudgetInfeasibleError: no level fits the budget.
            ProfileError: a budget was given, but this host was not profiled.
            RequestError: a request that the model cannot serve.
        """
        started = self._clock()
        if self.spec.kind != "decoder":
            msg = f"{self.spec.name} is no decoder and cannot generate; use forward"
            raise RequestError(msg)
        tokens, lengths, _ = pack_prompts(input_ids, attention_mask, self.spec)
        self._check_room(int(lengths.max()), max_new_tokens)
        chosen, decision = self._choose(level, budget, policy, int(lengths.max()), max_new_tokens, len(tokens))
        cache = self.engines.new_cache(chosen.name, len(tokens), int(lengths.max()) + max_new_tokens)
        loop = DecodeLoop(
            self.engines.decoder(chosen.name).bind(cache.rows),
            cache,
            stops=frozenset(self.spec.stop_tokens if stop_tokens is None else stop_tokens),
            sampling=sampling or Sampling(),
            clock=self._clock,
            on_token=on_token,
        )
        rows = loop.run(tokens, lengths, max_new_tokens)
        is_single = not isinstance(input_ids[0], list | tuple | np.ndarray)
        return Generation(
            tokens=rows[0] if is_single else rows,
            level=chosen.name,
            observed_ms=(self._clock() - started) / 1e6,
            ttft_ms=(loop.first_token_at - started) / 1e6,
            decision=decision,
        )

    def _choose(
        self,
        level: str | None,
        budget: LatencyBudget | None,
        policy: str | RoutingPolicy,
        prompt_tokens: int,
        new_tokens: int,
        batch: int,
    ) -> tuple[Level, RoutingDecision | None]:
        if level is not None or budget is None:
            return self.level(level), None
        decision = self.plan(
            prompt_tokens=prompt_tokens, new_tokens=new_tokens, budget=budget, batch=batch, policy=policy
        )
        if not decision.feasible:
            fastest = min([decision.bound_ms, *(alternative.bound_ms for alternative in decision.alternatives)])
            raise BudgetInfeasibleError(decision.reason, fastest)
        return self.level(decision.level), decision

    def _check_room(self, prompt_tokens: int, max_new_tokens: int) -> None:
        context = self.spec.context_tokens
        if max_new_tokens < 1:
            msg = f"max_new_tokens is {max_new_tokens}; ask for at least one"
            raise RequestError(msg)
        if context and prompt_tokens + max_new_tokens > context:
            msg = (
                f"{prompt_tokens} prompt tokens and {max_new_tokens} new ones exceed the context of {context}; "
                f"ask for at most {context - prompt_tokens}"
            )
            raise RequestError(msg)

    def _pixels(self, inputs: Any) -> NDArray[np.float32]:
        pixels = np.ascontiguousarray(inputs, np.float32)
        if pixels.shape[1:] != self.spec.image_shape or not len(pixels):
            wanted = ", ".join(map(str, self.spec.image_shape))
            msg = f"pixels are {pixels.shape}; {self.spec.name} takes (batch, {wanted})"
            raise RequestError(msg)
        return pixels
