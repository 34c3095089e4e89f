"""Levels of one bundle behind one interface: plan, forward, generate, or start and go on token by token."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.backends.onnxruntime.operators import STOCK, Operators
from blockexport.bundle.reader import Bundle
from blockexport.core.latency import LatencyBudget, LatencyProfile
from blockexport.errors import BudgetInfeasibleError, RequestError
from blockexport.routing.decision import RoutingDecision
from blockexport.routing.policy import RoutingPolicy
from blockexport.routing.request import RoutingRequest
from blockexport.routing.router import plan
from blockexport.runtime.decode_loop import DecodeLoop, Generation
from blockexport.runtime.engines import Engines
from blockexport.runtime.forward import run_whole
from blockexport.runtime.levels import Level, levels_of
from blockexport.runtime.others import OtherLevels
from blockexport.runtime.packed_entry import PackedLevels
from blockexport.runtime.profile import stored_profile
from blockexport.runtime.prompt_batch import PromptBatch
from blockexport.runtime.prompts import (
    Prompts,
    check_room,
    check_switches,
    is_one_prompt,
)
from blockexport.runtime.proof import proof_of
from blockexport.runtime.sampling import Sampling
from blockexport.runtime.session import Session, Up
from blockexport.runtime.tokenizer import load_tokenizer
from blockexport.runtime.workload import RuntimeWorkload
from blockexport.runtime.workspace import Workspace

__all__ = ["Generation", "Level", "Runtime"]

_WARM_UP_TOKENS = 16
KV_STEP_TOKENS = 256
"""Tokens for which memory is made at a time."""


class Runtime:
    """A bundle ready to serve. Not safe for use by several threads at once.

    Args:
        bundle: what to serve.
        threads: threads within an operator; 0 lets the backend choose.
        kv_tokens: tokens of each row that the cache holds at first, and by which it grows.
        operators: whose operators run the levels.
        packed: weights packed for the backend's own operators, shared by all levels.
        others: what runs levels in place of the graphs on the processor.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 0,
        kv_tokens: int = KV_STEP_TOKENS,
        operators: Operators = STOCK,
        packed: PackedLevels | None = None,
        others: OtherLevels | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        if kv_tokens < 1:
            msg = f"kv_tokens is {kv_tokens}; give the cache room for at least one token"
            raise RequestError(msg)
        self.bundle = bundle
        self.spec = bundle.manifest.model
        self.engines = Engines.of_bundle(
            bundle, threads=threads, operators=operators, packed=packed, prove=proof_of(bundle), others=others
        )
        self._kv_tokens = kv_tokens
        self._clock = clock
        self._spare: Workspace | None = None
        self.levels = levels_of(bundle.manifest)

    @cached_property
    def tokenizer(self) -> Any:
        """The bundle's tokenizer, a `tokenizers.Tokenizer`.

        Raises:
            RequestError: the bundle has none.
        """
        return load_tokenizer(self.bundle)

    def level(self, name: str | None) -> Level:
        """The level of that name, the deepest for None.

        Raises:
            RequestError: there is no such level.
        """
        return self.levels[0 if name is None else self.engines.rung(name)]

    @cached_property
    def profile(self) -> LatencyProfile:
        """The latency profile of this host, with as many threads.

        Raises:
            ProfileError: this host was not profiled, or the host or bundle has changed since.
        """
        return stored_profile(self.bundle, self.engines.threads)

    def plan(
        self,
        *,
        prompt_tokens: int = 0,
        new_tokens: int = 0,
        budget: LatencyBudget | None = None,
        batch: int = 1,
        policy: str | RoutingPolicy = "deepest-fit",
        min_quality: float | None = None,
        num_crops: int = 0,
        vision_level: str | None = None,
    ) -> RoutingDecision:
        """Decide which level serves a request, without running it.

        Args:
            prompt_tokens: tokens of the prompt; 0 for vision.
            new_tokens: tokens to generate; 0 for models that do not.
            budget: what the request may take; None for the deepest level.
            batch: requests served together.
            policy: a policy or its name.
            min_quality: what the level's primary metric must reach.
            num_crops: crops of all pictures together.
            vision_level: level of the vision side that reads them; None for the deepest.

        Raises:
            ProfileError: this host was not profiled.
            RequestError: the request does not fit the model.
        """
        request = RoutingRequest(prompt_tokens, new_tokens, batch, num_crops, vision_level)
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
        side = self.engines.vision
        if chosen and side is not None:
            RuntimeWorkload(side, side.spec, ()).forward_call(side.names[0], 1)()
        for level in chosen:
            if self.spec.kind == "decoder":
                workload.prefill_call(level.name, 1, tokens)()
                workload.decode_call(level.name, 1, tokens - 1)()
            else:
                workload.forward_call(level.name, 1)()

    def unload(self, level: str) -> None:
        """Close a level and free what it holds; it is opened again when it is next used.

        Raises:
            RequestError: there is no such level.
        """
        self.engines.unload(self.level(level).name)
        if self._spare is not None:
            self._spare.unbind(level)

    def forward(
        self, inputs: Any, level: str | None = None, *, attention_mask: Any = None, vision_level: str | None = None
    ) -> NDArray[np.float32]:
        """Run a level once on whole inputs.

        Args:
            inputs: token ids (batch, tokens) or pixels (batch, channels, height, width), or a mapping by input name,
                also of `images`, `image_masks` and `image_input_idx` for a decoder that reads pictures.
            level: name of the level; None for the deepest.
            attention_mask: (batch, tokens), nonzero for real tokens, padding on either side.
            vision_level: level of the vision side; None for the deepest.

        Returns:
            (batch, tokens, vocab) for decoders, else the model's output. Positions of padding hold 0 for decoders.

        Raises:
            RequestError: inputs that the model cannot take.
        """
        return run_whole(self.engines, self.level(level).name, inputs, attention_mask, vision_level)

    def start(
        self,
        input_ids: Prompts,
        *,
        level: str | None = None,
        sampling: Sampling | None = None,
        attention_mask: Any = None,
        chunk_tokens: int | None = None,
        capacity_tokens: int = 0,
        images: Any = None,
        image_masks: Any = None,
        image_input_idx: Any = None,
        vision_level: str | None = None,
    ) -> Session:
        """Begin to continue prompts, for a caller that takes token after token and changes levels in between.

        Args:
            input_ids: one prompt (tokens,), or several: (batch, tokens) or ragged lists.
            level: the level to begin with; None for the deepest.
            sampling: how tokens are drawn; None for the most likely.
            attention_mask: (batch, tokens), nonzero for real tokens.
            chunk_tokens: run at most this many prompt tokens at a time; None for whole prompts at once.
            capacity_tokens: tokens of each row to make room for now; the cache grows when more are needed.
            images: pictures, as `generate` takes them.
            image_masks: as `images`.
            image_input_idx: as `images`.
            vision_level: level of the vision side; None for the deepest.

        Raises:
            RequestError: a request that the model cannot serve.
        """
        prompts = PromptBatch.of(self.spec, input_ids, attention_mask, images, image_masks, image_input_idx)
        return self._session(self.level(level).name, prompts, vision_level, capacity_tokens, sampling, chunk_tokens)

    def _session(
        self,
        level: str,
        prompts: PromptBatch,
        vision_level: str | None,
        capacity_tokens: int,
        sampling: Sampling | None,
        chunk_tokens: int | None,
    ) -> Session:
        image_tokens = self.engines.encode(prompts.pictures, vision_level)
        # What the last session left serves the next; another one at the same time makes its own.
        workspace, self._spare = self._spare, None
        if workspace is None or workspace.batch != len(prompts.tokens):
            workspace = Workspace(self.engines, len(prompts.tokens), self._kv_tokens)
        workspace.reserve(capacity_tokens)
        return Session(
            self.engines,
            workspace,
            level,
            prompts.tokens,
            prompts.lengths,
            image_tokens=image_tokens,
            shifts=None if prompts.pictures is None else prompts.pictures.shifts,
            sampling=sampling,
            chunk_tokens=chunk_tokens,
            release=self._keep,
        )

    def _keep(self, workspace: Workspace) -> None:
        # A level that was unloaded meanwhile goes with the session that still used it.
        workspace.unbind(*{level.name for level in self.levels}.difference(self.engines.opened))
        self._spare = workspace

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
        switches: Mapping[int, str] | None = None,
        up: Up = "reprefill",
        chunk_tokens: int | None = None,
        images: Any = None,
        image_masks: Any = None,
        image_input_idx: Any = None,
        vision_level: str | None = None,
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
            switches: by index of the new token, the level that gives it and later ones.
            up: what a switch to a deeper level does about the tokens it lacks; see `Session.switch`.
            chunk_tokens: run at most this many prompt tokens at a time; None for whole prompts at once.
            images: pictures, for a model that reads some; see `runtime.pictures.read_pictures`.
            image_masks: as `images`.
            image_input_idx: as `images`.
            vision_level: level of the vision side; None for the deepest.

        Raises:
            BudgetInfeasibleError: no level fits the budget.
            ProfileError: a budget was given, but this host was not profiled.
            RequestError: a request that the model cannot serve.
        """
        started = self._clock()
        prompts = PromptBatch.of(self.spec, input_ids, attention_mask, images, image_masks, image_input_idx)
        prompt_tokens = int(prompts.lengths.max())
        check_room(prompt_tokens, max_new_tokens, self.spec)
        switches = switches or {}
        check_switches(switches, max_new_tokens)
        size = RoutingRequest(prompt_tokens, max_new_tokens, len(prompts.tokens), prompts.num_crops, vision_level)
        chosen, decision = self._choose(level, budget, policy, size)
        capacity_tokens = prompt_tokens + max_new_tokens - 1
        with self._session(chosen.name, prompts, vision_level, capacity_tokens, sampling, chunk_tokens) as session:
            loop = DecodeLoop(
                session,
                stops=frozenset(self.spec.stop_tokens if stop_tokens is None else stop_tokens),
                switches=switches,
                up=up,
                clock=self._clock,
                on_token=on_token,
            )
            rows = loop.run(max_new_tokens)
        return Generation(
            tokens=rows[0] if is_one_prompt(input_ids) else rows,
            level=chosen.name,
            observed_ms=(self._clock() - started) / 1e6,
            ttft_ms=(loop.first_token_at - started) / 1e6,
            decision=decision,
            switches=session.switches,
        )

    def _choose(
        self,
        level: str | None,
        budget: LatencyBudget | None,
        policy: str | RoutingPolicy,
        size: RoutingRequest,
    ) -> tuple[Level, RoutingDecision | None]:
        if level is not None or budget is None:
            return self.level(level), None
        decision = plan(self.profile, self.levels, size, budget, policy)
        if not decision.feasible:
            fastest = min([decision.bound_ms, *(alternative.bound_ms for alternative in decision.alternatives)])
            raise BudgetInfeasibleError(decision.reason, fastest)
        return self.level(decision.level), decision
