"""A writer killed, or failing, at every operation on the file system, with and without RENAME_EXCHANGE."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from blockexport.bundle import swap
from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.reader import open_bundle
from blockexport.errors import BundleError

EVENTS = ("open", "os.", "blockexport.")
DONE, FAILED_CLEANLY, FAILED_BADLY = 0, 1, 2


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _count_down(root: Path, act: Callable[[], None], steps: int) -> None:
    """Call `act` before the `steps`-th operation below `root`, counting audited ones, fsync and the exchange."""
    left = steps

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if left < 0 or not event.startswith(EVENTS):
            return
        if any(str(root) in os.fsdecode(a) for a in arguments if isinstance(a, str | bytes | os.PathLike)):
            left -= 1
            if left < 0:
                act()

    real_fsync, real_exchange = os.fsync, swap.exchange

    def fsync(descriptor: int) -> None:
        sys.audit("blockexport.fsync", str(root))
        real_fsync(descriptor)

    def exchange(first: Path, second: Path) -> bool:
        sys.audit("blockexport.before_exchange", str(root))
        done = real_exchange(first, second)
        sys.audit("blockexport.after_exchange", str(root))
        return done

    os.fsync, swap.exchange = fsync, exchange  # type: ignore[assignment]
    sys.addaudithook(hook)


def _in_child(work: Callable[[], int]) -> int:
    """Run `work` in a forked process; its result, or minus the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = FAILED_BADLY
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
    raise OSError(28, "No space left on device")


def _interrupt() -> None:
    raise KeyboardInterrupt


def _build(root: Path, build_bundle: Any, act: Callable[[], None], steps: int) -> int:
    _count_down(root, act, steps)
    try:
        build_bundle(root / "bundle", 2)
    except (BundleError, KeyboardInterrupt):
        return FAILED_CLEANLY
    return DONE


@pytest.fixture(params=["exchange", "two steps"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "two steps":
        monkeypatch.setattr(swap, "exchange", lambda first, second: False)
    # A killed process loses nothing that it had written; hundreds of real flushes would only take time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return tmp_path


def _content(out: Path) -> bytes | None:
    if not out.exists() and not swap.previous_folder(out).exists():
        return None
    folder = open_bundle(out).folder
    return (folder / "d3.ort.onnx").read_bytes()


OLD, NEW = b"graph d3 1", b"graph d3 2"


@pytest.mark.slow
@pytest.mark.parametrize("had_one", [True, False])
def test_a_kill_at_any_moment_leaves_the_old_bundle_or_the_new_one(
    place: Path, build_bundle: Any, had_one: bool
) -> None:
    seen = set()
    for steps in range(1000):
        root = place / str(steps)
        root.mkdir()
        if had_one:
            build_bundle(root / "bundle", 1)
        code = _in_child(partial(_build, root, build_bundle, _die, steps))
        found = _content(root / "bundle")
        assert found in ((OLD, NEW) if had_one else (None, NEW)), steps
        seen.add(found)
        # The next build clears up whatever was left.
        build_bundle(root / "bundle", 3)
        assert names(root) == ["bundle"], steps
        if code == DONE:
            break
        assert code == -signal.SIGKILL
    assert steps > 30
    assert seen == ({OLD, NEW} if had_one else {None, NEW})


@pytest.mark.slow
@pytest.mark.parametrize("act", [_fail, _interrupt])
def test_a_failure_at_any_moment_leaves_the_old_bundle_or_the_new_one(
    place: Path, build_bundle: Any, act: Callable[[], None]
) -> None:
    codes = set()
    for steps in range(1000):
        root = place / str(steps)
        root.mkdir()
        build_bundle(root / "bundle", 1)
        code = _in_child(partial(_build, root, build_bundle, act, steps))
        assert code in (DONE, FAILED_CLEANLY), steps
        found = _content(root / "bundle")
        assert found in ((OLD, NEW) if code == FAILED_CLEANLY else (NEW,)), steps
        if found == OLD:
            assert names(root) == ["bundle"], steps
        codes.add(code)
        if code == DONE and found == NEW and not _reached(root, steps, build_bundle):
            break
    assert steps > 30
    assert codes == {DONE, FAILED_CLEANLY}


def _reached(root: Path, steps: int, build_bundle: Any) -> bool:
    """Whether a build has as many operations; a failure in the last of them is swallowed, as it is only tidying."""
    again = root / "again"
    again.mkdir()
    build_bundle(again / "bundle", 1)
    return _in_child(partial(_build, again, build_bundle, _die, steps)) != DONE


def test_exchange_swaps_two_folders_in_one_step(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"")
    if not swap.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange")
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["b"], ["a"])


def test_exchange_with_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError):
        swap.exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == ["a"]


def test_without_exchange_a_bundle_is_replaced_all_the_same(
    tmp_path: Path, build_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "exchange", lambda first, second: False)
    build_bundle(tmp_path / "bundle", 1)
    build_bundle(tmp_path / "bundle", 2)
    assert _content(tmp_path / "bundle") == NEW
    assert names(tmp_path) == ["bundle"]


def test_a_second_rename_that_fails_puts_the_old_bundle_back(
    tmp_path: Path, build_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_bundle(tmp_path / "bundle", 1)
    with pytest.raises(FileNotFoundError):
        swap._replace_in_two_steps(tmp_path / "missing", tmp_path / "bundle")
    # Before the bundle is opened, as that would put it back too.
    assert names(tmp_path) == ["bundle"]
    assert _content(tmp_path / "bundle") == OLD


def test_recover_touches_nothing_when_there_is_a_bundle(tmp_path: Path, build_bundle: Any) -> None:
    build_bundle(tmp_path / "bundle", 1)
    build_bundle(tmp_path / ".bundle.previous", 2)
    swap.recover(tmp_path / "bundle")
    assert _content(tmp_path / "bundle") == OLD
    (tmp_path / "bundle").rename(tmp_path / "gone")
    assert _content(tmp_path / "bundle") == NEW


def test_names_with_pattern_characters_match_themselves_only(tmp_path: Path) -> None:
    for name in (".b[1].building-x", ".b1.building-x"):
        (tmp_path / name).mkdir()
    swap.remove_abandoned(tmp_path / "b[1]")
    assert names(tmp_path) == [".b1.building-x"]


def test_a_staging_folder_is_locked_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    staging, lock = swap.create_staging(tmp_path / "bundle")
    (staging / WEIGHTS_FILE).write_bytes(b"x")
    swap.remove_abandoned(tmp_path / "bundle")
    assert staging.exists()
    assert staging.name.startswith(".bundle.building-")
    os.close(lock)
    swap.remove_abandoned(tmp_path / "bundle")
    assert not staging.exists()
