"""Switching between two tokens, against eager models that do the same switches."""

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from blockexport.errors import RequestError
from blockexport.runtime.session import Session
from blockexport.runtime.workspace import Workspace
from blockexport.testing.tiny_models import VOCAB_SIZE

pytestmark = pytest.mark.slow

# Grouped-query attention with rotated keys; sliding windows beside full attention; learned positions.
ARCHITECTURES = ("llama", "gemma3", "gpt2")
NUM_PROMPT, NUM_NEW = 5, 24
TOKENS = np.random.default_rng(0).integers(1, VOCAB_SIZE, NUM_PROMPT + NUM_NEW).tolist()
RUBBISH = 1e3
STEP_TOKENS = 8


def workspace_of(ladder: Any, batch: int = 1) -> Workspace:
    """One whose memory holds rubbish wherever nothing was written."""
    workspace = Workspace(ladder.engines, batch, STEP_TOKENS)
    spoil(workspace)
    return workspace


def spoil(workspace: Workspace) -> None:
    for pair in workspace.cache.rows.values():
        for array in pair:
            array.fill(RUBBISH)


def start(ladder: Any, level: str, prompts: Sequence[Sequence[int]], **options: Any) -> Session:
    lengths = np.array([len(prompt) for prompt in prompts])
    tokens = np.zeros((len(prompts), lengths.max()), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    workspace = options.pop("workspace", None) or workspace_of(ladder, len(prompts))
    return Session(ladder.engines, workspace, level, tokens, lengths, **options)


def logits_of(session: Session, continuation: Sequence[int], switches: dict[int, tuple[str, str]]) -> NDArray[Any]:
    """Logits (new, vocab) from which each new token would be chosen, while given ones are fed."""
    collected = []
    for index, token in enumerate(continuation):
        if index in switches:
            level, up = switches[index]
            session.switch(level, up=up)
        collected.append(session.run()[0].copy())
        session.append([token])
    return np.stack(collected)


@pytest.mark.parametrize(("before", "after"), list(permutations(["d4", "d3", "d2"], 2)), ids="-".join)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_switch_at_every_token_is_exact(architecture: str, before: str, after: str, ladder_of: Callable) -> None:
    ladder = ladder_of(architecture)
    workspace = workspace_of(ladder)
    is_down = after < before
    for index in range(NUM_NEW):
        spoil(workspace)
        session = start(ladder, before, [TOKENS[:NUM_PROMPT]], workspace=workspace)
        logits = logits_of(session, TOKENS[NUM_PROMPT:], {index: (after, "reprefill")})
        # The token behind which the switch comes is run by the new level; going up, all others are run again.
        num_before = NUM_PROMPT + index - 1 if is_down and index else 0
        expected = ladder.stock(TOKENS, (before, num_before), (after, len(TOKENS)))[NUM_PROMPT - 1 : -1]
        assert np.abs(logits[index:] - expected[index:]).max() <= ladder.tolerance
        assert session.switches == ((index, after),)


@pytest.mark.parametrize(("before", "after"), [("d2", "d3"), ("d2", "d4"), ("d3", "d4")], ids="-".join)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_passing_over_a_hole_equals_eager_attention_that_does(
    architecture: str, before: str, after: str, ladder_of: Callable
) -> None:
    ladder = ladder_of(architecture)
    workspace = workspace_of(ladder)
    for index in range(NUM_NEW):
        spoil(workspace)
        session = start(ladder, before, [TOKENS[:NUM_PROMPT]], workspace=workspace)
        logits = logits_of(session, TOKENS[NUM_PROMPT:], {index: (after, "masked")})
        eager, num_before = ladder.eager(), NUM_PROMPT + index - 1 if index else 0
        expected = []
        for level, part in ((before, TOKENS[:num_before]), (after, TOKENS[num_before:])):
            if part:
                expected.append(eager.run(part, level, fill=False))
        expected = np.concatenate(expected)[NUM_PROMPT - 1 : -1]
        assert np.abs(logits - expected).max() <= ladder.tolerance
        # The hole is felt: neither level alone gives this.
        if index:
            deep = ladder.stock(TOKENS, (after, len(TOKENS)))[NUM_PROMPT - 1 : -1]
            assert np.abs(logits[index:] - deep[index:]).max() > 100 * ladder.tolerance


def follow(ladder: Any, schedule: Sequence[tuple[str, str, int]]) -> None:
    """Run spans of (level, up, tokens) in one session, and check every distribution against the reference's."""
    eager, session = ladder.eager(), start(ladder, schedule[0][0], [TOKENS[:NUM_PROMPT]])
    # The reference's first run is of the prompt but for its last token, which the first span runs with its own.
    pending, done, is_first = TOKENS[:NUM_PROMPT], NUM_PROMPT, True
    for level, up, num_tokens in schedule:
        session.switch(level, up=up)
        fill = up == "reprefill"
        for _ in range(num_tokens):
            expected = eager.run(pending, level, fill=fill or is_first)[-1]
            assert np.abs(session.run()[0] - expected).max() <= ladder.tolerance
            pending, is_first = [TOKENS[done]], False
            session.append(pending)
            done += 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_sequence_of_switches_equals_the_reference(architecture: str, ladder_of: Callable) -> None:
    ladder, rng = ladder_of(architecture), np.random.default_rng(3)
    for _ in range(12):
        spans = rng.multinomial(NUM_NEW, np.full(5, 0.2))
        follow(
            ladder,
            [(str(rng.choice(["d4", "d3", "d2"])), str(rng.choice(["reprefill", "masked"])), int(n)) for n in spans],
        )


def test_a_hole_in_the_middle_is_filled_from_where_it_begins(ladder_of: Callable) -> None:
    ladder = ladder_of("llama")
    workspace = workspace_of(ladder)
    session = start(ladder, "d4", [TOKENS[:NUM_PROMPT]], workspace=workspace)
    spans = {4: ("d2", "reprefill"), 9: ("d3", "reprefill")}
    logits = logits_of(session, TOKENS[NUM_PROMPT:], spans)
    # d3 runs what d2 had run again, and leaves alone what d4 had run.
    begin = NUM_PROMPT + 4 - 1
    expected = ladder.stock(TOKENS, ("d4", begin), ("d3", len(TOKENS)))[NUM_PROMPT - 1 : -1]
    assert np.abs(logits[9:] - expected[9:]).max() <= ladder.tolerance
    assert workspace.cache.valid_tokens(0).tolist() == [begin]
    assert session.switches == ((4, "d2"), (9, "d3"))


def test_going_down_moves_nothing(ladder_of: Callable) -> None:
    ladder = ladder_of("llama")
    workspace = workspace_of(ladder)
    session = start(ladder, "d4", [TOKENS[:NUM_PROMPT]], workspace=workspace)
    session.step()
    addresses = {b: tuple(part.ctypes.data for part in row) for b, row in workspace.cache.rows.items()}
    contents = {b: tuple(part.copy() for part in row) for b, row in workspace.cache.rows.items()}
    session.switch("d2")
    for block, row in workspace.cache.rows.items():
        assert tuple(part.ctypes.data for part in row) == addresses[block]
        assert all(np.array_equal(*pair) for pair in zip(row, contents[block], strict=True))
    session.step()
    skipped = set(range(4)) - {2, 3}
    for block, row in workspace.cache.rows.items():
        is_same = all(np.array_equal(*pair) for pair in zip(row, contents[block], strict=True))
        assert is_same == (block in skipped)


PROMPTS = [TOKENS[:9], TOKENS[3:7], TOKENS[8:20]]


@pytest.mark.parametrize("up", ["reprefill", "masked"])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 3, 100])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_a_batch_get_what_each_would_alone(
    architecture: str, chunk_tokens: int | None, up: str, ladder_of: Callable
) -> None:
    ladder = ladder_of(architecture)
    plan = {2: "d2", 5: "d3", 8: "d4", 10: "d2"}

    def run(prompts: Sequence[Sequence[int]], **options: Any) -> NDArray[Any]:
        session, collected = start(ladder, "d4", prompts, **options), []
        for index in range(14):
            if index in plan:
                session.switch(plan[index], up=up)
            collected.append(session.run().copy())
            session.append(collected[-1].argmax(-1))
        assert [level for _, level in session.switches] == list(plan.values())
        return np.stack(collected, 1)

    together = run(PROMPTS, chunk_tokens=chunk_tokens)
    for row, prompt in enumerate(PROMPTS):
        alone = run([prompt])[0]
        assert np.abs(together[row] - alone).max() <= 2 * ladder.tolerance
        assert (together[row].argmax(-1) == alone.argmax(-1)).all()


def test_step_chooses_what_the_logits_say_and_counts_it(ladder_of: Callable) -> None:
    ladder = ladder_of("llama")
    session = start(ladder, "d3", PROMPTS)
    for index in range(4):
        wanted = session.run().argmax(-1)
        assert (session.run().argmax(-1) == wanted).all()
        assert (session.step() == wanted).all()
        assert session.lengths.tolist() == [len(prompt) + index + 1 for prompt in PROMPTS]


def test_the_cache_grows_under_a_session_that_does_not_notice(ladder_of: Callable) -> None:
    ladder = ladder_of("gemma3")
    workspace = workspace_of(ladder)
    session = start(ladder, "d4", [TOKENS[:NUM_PROMPT]], workspace=workspace)
    assert workspace.cache.capacity_tokens == STEP_TOKENS
    logits = logits_of(session, TOKENS[NUM_PROMPT:], {11: ("d2", "reprefill")})
    assert workspace.cache.capacity_tokens == 4 * STEP_TOKENS
    expected = ladder.stock(TOKENS, ("d4", NUM_PROMPT + 10), ("d2", len(TOKENS)))[NUM_PROMPT - 1 : -1]
    assert np.abs(logits - expected).max() <= ladder.tolerance


def test_the_context_ends_with_an_error_and_no_wrong_token(ladder_of: Callable) -> None:
    ladder = ladder_of("gpt2")
    context = ladder.engines.spec.context_tokens
    session = start(ladder, "d4", [(TOKENS * 3)[: context - 1]])
    session.step()  # behind the last token but one
    session.step()  # behind the last that can be placed
    with pytest.raises(RequestError, match="context of 64 tokens is full"):
        session.step()
    assert session.lengths.tolist() == [context + 1]


def test_no_memory_to_grow_is_an_error_after_which_it_can_go_on(
    ladder_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder = ladder_of("llama")
    workspace = workspace_of(ladder)
    session = start(ladder, "d4", [TOKENS[: STEP_TOKENS - 1]], workspace=workspace)
    session.append([TOKENS[STEP_TOKENS - 1]])
    session.append([TOKENS[STEP_TOKENS]])

    def refuse(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("blockexport.core.engine.np.zeros", refuse)
        with pytest.raises(RequestError, match=r"no memory for a cache of 1 x 16 tokens \(0 MB\); ask for fewer"):
            session.run()
    expected = ladder.stock(TOKENS, ("d4", STEP_TOKENS + 1))[-1]
    assert np.abs(session.run()[0] - expected).max() <= ladder.tolerance


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[Workspace, Session], None]:
    """`fails(workspace, session)` lets the next run of the session's engine fail."""

    def refuse(*_: object) -> None:
        msg = "no"
        raise RequestError(msg)

    def fail_once(workspace: Workspace, session: Session) -> None:
        with monkeypatch.context() as patch:
            for bound in (workspace.decoding(session.level), workspace.prompting(session.level)):
                patch.setattr(bound, "step", refuse)
            with pytest.raises(RequestError, match="no"):
                session.run()

    return fail_once


def test_an_engine_that_fails_at_every_token_leaves_no_trace(ladder_of: Callable, fails: Callable) -> None:
    ladder = ladder_of("llama")
    workspace = workspace_of(ladder)
    workspace.reserve(len(TOKENS))
    session = start(ladder, "d3", [TOKENS[:NUM_PROMPT]], workspace=workspace)
    expected = ladder.stock(TOKENS, ("d3", len(TOKENS)))[NUM_PROMPT - 1 : -1]
    for token, wanted in zip(TOKENS[NUM_PROMPT:], expected, strict=True):
        fails(workspace, session)
        assert np.abs(session.run()[0] - wanted).max() <= ladder.tolerance
        session.append([token])


@pytest.mark.parametrize("level", ["d4", "d3", "d2"])
def test_a_hole_that_could_not_be_filled_makes_no_token_wrong(level: str, ladder_of: Callable, fails: Callable) -> None:
    """Whichever level comes next."""
    ladder, hole = ladder_of("llama"), 4
    workspace = workspace_of(ladder)
    session = start(ladder, "d4", [TOKENS[:NUM_PROMPT]], workspace=workspace)
    logits_of(session, TOKENS[NUM_PROMPT:][:9], {hole: ("d2", "reprefill")})
    session.switch("d4")
    fails(workspace, session)
    session.switch(level)
    logits = logits_of(session, TOKENS[NUM_PROMPT + 9 :], {})
    expected = ladder.stock(TOKENS, ("d4", NUM_PROMPT + hole - 1), (level, len(TOKENS)))[NUM_PROMPT + 8 : -1]
    assert np.abs(logits - expected).max() <= ladder.tolerance


def test_memory_goes_from_a_closed_session_to_the_next(ladder_of: Callable) -> None:
    ladder, released = ladder_of("llama"), []
    workspace = workspace_of(ladder)
    with start(ladder, "d4", [TOKENS[:9]], workspace=workspace, release=released.append) as session:
        session.step()
    session.close()
    assert released == [workspace]
    for use in (session.run, session.step, lambda: session.append([1]), lambda: session.switch("d2")):
        with pytest.raises(RequestError, match="session is closed"):
            use()
    again = start(ladder, "d2", [TOKENS[:NUM_PROMPT]], workspace=workspace)
    expected = ladder.stock(TOKENS, ("d2", len(TOKENS)))[NUM_PROMPT - 1 : -1]
    assert np.abs(logits_of(again, TOKENS[NUM_PROMPT:], {}) - expected).max() <= ladder.tolerance


def test_wrong_use_is_refused_and_changes_nothing(ladder_of: Callable) -> None:
    ladder = ladder_of("llama")
    session = start(ladder, "d4", PROMPTS)
    for call, message in [
        (lambda: session.switch("d5"), "no level 'd5'; this bundle has d4, d3, d2"),
        (lambda: session.switch("d2", up="guess"), "up is 'guess'; choose from reprefill, masked"),
        (lambda: session.append([1, 2]), r"tokens are \[1, 2\]; give one below 97 for each of 3 rows"),
        (lambda: session.append([1, 2, 97]), "one below 97"),
        (lambda: session.append([1, 2, -1]), "one below 97"),
        (lambda: session.append([1, 2, 3.5]), "one below 97"),
        (lambda: start(ladder, "d4", PROMPTS, chunk_tokens=0), "chunk_tokens is 0"),
        (lambda: start(ladder, "d5", PROMPTS), "no level 'd5'"),
    ]:
        with pytest.raises(RequestError, match=message):
            call()
    assert (session.level, session.switches) == ("d4", ())
    assert session.lengths.tolist() == [9, 4, 12]
