"""A loaded bundle, from request to answer."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockexport.core.latency import LatencyBudget
from blockexport.errors import BudgetInfeasibleError, ProfileError, RequestError
from blockexport.runtime import Runtime, Session, load, profile
from blockexport.runtime.sampling import Sampling
from blockexport.testing.tiny_models import VOCAB_SIZE

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(5)
PROMPT = RNG.integers(1, VOCAB_SIZE, 7).tolist()
PROMPTS = [PROMPT, RNG.integers(1, VOCAB_SIZE, 3).tolist(), RNG.integers(1, VOCAB_SIZE, 11).tolist()]


def greedy(ladder: Any, prompt: Sequence[int], count: int, plan: dict[int, str], up: str) -> list[int]:
    """What the eager reference generates with the same switches."""
    session, level, fill, pending = ladder.eager(), "d4", True, list(prompt)
    tokens = []
    for index in range(count):
        if index in plan:
            level, fill = plan[index], up == "reprefill"
        pending = [int(session.run(pending, level, fill=fill)[-1].argmax())]
        tokens += pending
    return tokens


@pytest.mark.parametrize("up", ["reprefill", "masked"])
@pytest.mark.parametrize("plan", [{}, {0: "d2"}, {3: "d2", 9: "d4"}, {1: "d3", 2: "d2", 3: "d3", 8: "d4"}], ids=str)
def test_tokens_are_those_of_the_eager_model_with_the_same_switches(
    plan: dict[int, str], up: str, runtime: Runtime, ladder_of: Callable
) -> None:
    ladder = ladder_of("llama")
    found = runtime.generate(PROMPTS, 12, switches=plan, up=up, stop_tokens=[])
    assert found.tokens == [greedy(ladder, prompt, 12, plan, up) for prompt in PROMPTS]
    assert (found.level, found.switches) == ("d4", tuple(plan.items()))
    assert 0 < found.ttft_ms <= found.observed_ms


def test_one_prompt_gives_one_list(runtime: Runtime) -> None:
    one, several = runtime.generate(PROMPT, 4), runtime.generate([PROMPT], 4)
    assert several.tokens == [one.tokens]
    assert runtime.generate(np.array(PROMPT), 4).tokens == one.tokens
    assert len(one.tokens) == 4


def test_padding_and_chunks_change_nothing(runtime: Runtime) -> None:
    wanted = runtime.generate(PROMPTS, 6, level="d3").tokens
    width = max(map(len, PROMPTS))
    padded = np.array([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]
    assert runtime.generate(padded, 6, level="d3", attention_mask=mask).tokens == wanted
    assert runtime.generate(PROMPTS, 6, level="d3", chunk_tokens=2).tokens == wanted


def test_stop_tokens_end_rows_and_are_left_out(runtime: Runtime) -> None:
    free = runtime.generate(PROMPTS, 8).tokens
    stop = free[0][3]
    stopped = runtime.generate(PROMPTS, 8, stop_tokens=[stop]).tokens
    assert stopped == [row[: row.index(stop)] if stop in row else row for row in free]
    assert len(stopped[0]) <= 3


def test_tokens_are_told_while_they_come(runtime: Runtime) -> None:
    told: list[list[int]] = [[], [], []]
    found = runtime.generate(PROMPTS, 5, on_token=lambda row, token: told[row].append(token))
    assert told == found.tokens


def test_sampling_is_repeatable(runtime: Runtime) -> None:
    first, again, other = (
        runtime.generate(PROMPT, 12, sampling=Sampling(5.0, seed=seed), stop_tokens=[]).tokens for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_session_is_generation_step_by_step(runtime: Runtime) -> None:
    wanted = runtime.generate(PROMPT, 6, switches={2: "d2"}, stop_tokens=[]).tokens
    with runtime.start(PROMPT) as session:
        assert isinstance(session, Session)
        tokens = [session.step()[0] for _ in range(2)]
        session.switch("d2")
        tokens += [session.step()[0] for _ in range(4)]
    assert tokens == wanted


def test_sessions_at_the_same_time_do_not_touch_each_other(runtime: Runtime) -> None:
    prompts = [PROMPT, PROMPTS[2]]
    wanted = [runtime.generate(prompt, 6, stop_tokens=[]).tokens for prompt in prompts]
    sessions = [runtime.start(prompt) for prompt in prompts]
    tokens: list[list[int]] = [[], []]
    for _ in range(6):
        for row, session in zip(tokens, sessions, strict=True):
            row.append(int(session.step()[0]))
    assert tokens == wanted


def test_requests_share_memory_and_bindings(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.generate(PROMPT, 4, switches={2: "d2"})
    wanted = runtime.generate(PROMPT, 4, level="d2").tokens

    def refuse(*_: object, **__: object) -> None:
        msg = "nothing is to be made anew"
        raise AssertionError(msg)

    monkeypatch.setattr("blockexport.runtime.kv_cache.empty_rows", refuse)
    monkeypatch.setattr("blockexport.backends.onnxruntime.decoder.OrtBoundDecoder.__init__", refuse)
    assert runtime.generate(PROMPT, 4, level="d2").tokens == wanted


def test_memory_grows_in_steps_and_stops_at_the_context(bundle_folder: Path) -> None:
    runtime = load(bundle_folder, threads=1, verify=False, kv_tokens=20)
    capacities = []
    for max_new_tokens in (4, 13, 15, 57):
        runtime.generate(PROMPT, max_new_tokens)
        capacities.append(runtime._spare.cache.capacity_tokens)
    assert capacities == [20, 20, 40, 64]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "d9"}, "no level 'd9'; this bundle has d4, d3, d2"),
        ({"switches": {1: "d9"}}, "no level 'd9'"),
        ({"switches": {4: "d2"}}, "a switch at new token 4"),
        ({"up": "guess", "switches": {1: "d2"}}, "up is 'guess'"),
        ({"max_new_tokens": 58}, "exceed the context of 64"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"chunk_tokens": -1}, "chunk_tokens is -1"),
        ({"input_ids": [VOCAB_SIZE]}, "outside the vocabulary"),
    ],
    ids=str,
)
def test_a_refused_request_leaves_the_next_one_alone(options: dict[str, Any], message: str, runtime: Runtime) -> None:
    wanted = runtime.generate(PROMPT, 4).tokens
    with pytest.raises(RequestError, match=message):
        runtime.generate(**{"input_ids": PROMPT, "max_new_tokens": 4} | options)
    assert runtime.generate(PROMPT, 4).tokens == wanted


@pytest.mark.parametrize("fails_at", range(3))
def test_the_request_after_a_failure_is_served_correctly(
    fails_at: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = runtime.generate(PROMPT, 6, switches={2: "d2", 4: "d4"}).tokens
    level = ["d4", "d2", "d4"][fails_at]
    bound = runtime._spare.decoding(level)

    class Broken:
        def run_with_iobinding(self, *_: object) -> None:
            msg = "Failed to allocate memory\nfor requested buffer"
            raise RuntimeError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(bound, "_session", Broken())
        with pytest.raises(RequestError, match="1x1 tokens: Failed to allocate memory for requested buffer; ask for f"):
            runtime.generate(PROMPT, 6, switches={2: "d2", 4: "d4"})
    assert runtime.generate(PROMPT, 6, switches={2: "d2", 4: "d4"}).tokens == wanted


def test_too_little_memory_is_a_refused_request(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = runtime.generate(PROMPT, 4).tokens

    def refuse(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("blockexport.core.engine.np.zeros", refuse)
        with pytest.raises(RequestError, match="no memory for a cache of 2 x 64 tokens"):
            runtime.generate(np.array([PROMPT, PROMPT]), 4)
    assert runtime.generate(PROMPT, 4).tokens == wanted


def test_levels_open_when_first_used_and_close_when_told(runtime: Runtime) -> None:
    assert runtime.engines.opened == ()
    wanted = runtime.generate(PROMPT, 4, level="d3").tokens
    assert runtime.engines.opened == ("d3",)
    runtime.warm_up(["d2"])
    assert runtime.engines.opened == ("d3", "d2")
    runtime.unload("d3")
    runtime.unload("d4")  # was not open
    assert runtime.engines.opened == ("d2",)
    assert "d3" not in runtime._spare._decoding | runtime._spare._prompting
    assert runtime.generate(PROMPT, 4, level="d3").tokens == wanted
    with pytest.raises(RequestError, match="no level 'd5'"):
        runtime.unload("d5")
    with pytest.raises(RequestError, match="no level 'd5'"):
        runtime.warm_up(["d5"])


def test_a_session_outlives_the_unloading_of_its_level(runtime: Runtime) -> None:
    wanted = runtime.generate(PROMPT, 4, stop_tokens=[]).tokens
    session = runtime.start(PROMPT)
    tokens = [session.step()[0]]
    runtime.unload("d4")
    assert tokens + [session.step()[0] for _ in range(3)] == wanted
    session.close()
    assert not runtime._spare._decoding


def test_levels_say_what_they_are(runtime: Runtime) -> None:
    assert [(level.name, level.depth, level.kept) for level in runtime.levels] == [
        ("d4", 4, (0, 1, 2, 3)),
        ("d3", 3, (0, 2, 3)),
        ("d2", 2, (2, 3)),
    ]
    assert runtime.level(None) is runtime.levels[0]
    assert runtime.level("d2") is runtime.levels[2]
    assert {level.quality for level in runtime.levels} == {None}


@pytest.mark.parametrize("level", ["d4", "d3", "d2"])
def test_forward_is_the_model_on_every_real_token(level: str, runtime: Runtime, ladder_of: Callable) -> None:
    ladder = ladder_of("llama")
    width = max(map(len, PROMPTS))
    tokens = np.array([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = np.array([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    by_array = runtime.forward(tokens, level=level, attention_mask=mask)
    by_name = runtime.forward({"input_ids": tokens, "attention_mask": mask}, level=level)
    assert np.array_equal(by_array, by_name)
    assert (by_array[mask == 0] == 0).all()
    for row, prompt in enumerate(PROMPTS):
        expected = ladder.stock(prompt, (level, len(prompt)))
        assert np.abs(by_array[row, mask[row] == 1] - expected).max() <= ladder.tolerance


def test_without_a_profile_there_is_no_plan(runtime: Runtime) -> None:
    with pytest.raises(ProfileError, match="no latency profile of this host"):
        runtime.plan(prompt_tokens=4, new_tokens=4)
    with pytest.raises(ProfileError):
        runtime.generate(PROMPT, 4, budget=LatencyBudget(e2e_ms=10_000))


@pytest.fixture
def profiled(bundle_folder: Path, tmp_path: Path) -> Runtime:
    """A copy with a profile of its own."""
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "bundle"))
    profile(load(folder, threads=1, verify=False), quick=True, time_limit_s=1)
    return load(folder, threads=1, verify=False)


def test_a_budget_picks_the_level(profiled: Runtime) -> None:
    found = profiled.generate(PROMPT, 4, budget=LatencyBudget(e2e_ms=1e6))
    assert (found.level, found.decision.level) == ("d4", "d4")
    assert found.tokens == profiled.generate(PROMPT, 4, level="d4").tokens
    with pytest.raises(BudgetInfeasibleError) as caught:
        profiled.generate(PROMPT, 4, budget=LatencyBudget(e2e_ms=1e-6))
    assert caught.value.fastest_ms > 1e-6
    # A level that is asked for by name runs, whatever the budget.
    assert profiled.generate(PROMPT, 4, level="d2", budget=LatencyBudget(e2e_ms=1e-6)).level == "d2"


def test_a_profile_of_another_build_is_not_believed(profiled: Runtime) -> None:
    ((key, stored),) = profiled.bundle.read_profiles().items()
    profiled.bundle.write_profile(key, stored | {"bundle_digest": "0" * 64})
    with pytest.raises(ProfileError, match="of another build"):
        profiled.plan(prompt_tokens=4, new_tokens=4)


def test_text_needs_a_tokenizer(runtime: Runtime) -> None:
    with pytest.raises(RequestError, match="has no tokenizer; pass token ids"):
        _ = runtime.tokenizer


def test_what_is_no_decoder_generates_nothing(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "spec", runtime.spec.model_copy(update={"kind": "encoder"}))
    for call in (runtime.generate, runtime.start):
        with pytest.raises(RequestError, match="is no decoder and cannot generate; use forward"):
            call(PROMPT)
