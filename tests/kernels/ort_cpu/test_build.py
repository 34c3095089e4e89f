"""Compiling: once, aside, by several at a time, and a reason when it cannot be done."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from blockexport_kernels.ort_cpu import build as building
from blockexport_kernels.ort_cpu.build import NativeBuildError, build, find_compiler
from blockexport_kernels.ort_cpu.library import path_of


@pytest.fixture
def counting_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$CXX that notes each call, and pretends: every output is the arguments it was given."""
    log = tmp_path / "calls"
    script = tmp_path / "fake-c++"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n'
        'while [ $# -gt 0 ]; do if [ "$1" = -o ]; then echo built > "$2"; fi; shift; done\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    return log


def test_the_fastest_path_is_one_of_those_there_are(library: Path) -> None:
    assert path_of(library) in {"avx512", "avx2", "scalar"}


def test_an_unknown_path_is_refused(library: Path) -> None:
    code = "import sys, onnxruntime as ort\nort.SessionOptions().register_custom_ops_library(sys.argv[1])\n"
    done = subprocess.run(
        [sys.executable, "-c", code, str(library)],
        env={**os.environ, "BLOCKEXPORT_CPU_PATH": "abacus"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "BLOCKEXPORT_CPU_PATH must be scalar, avx2 or avx512" in done.stderr


def test_built_once_for_one_source(counting_compiler: Path, tmp_path: Path) -> None:
    first = build(tmp_path / "cache")
    calls = len(counting_compiler.read_text().splitlines())
    assert calls > len(list(building.SOURCES.glob("*.cc"))) - 2
    assert os.listdir(tmp_path / "cache") == [first.name]  # nothing half-written stays
    assert build(tmp_path / "cache") == first
    assert len(counting_compiler.read_text().splitlines()) == calls + 1  # asked for its version, no more


def test_other_sources_are_another_library(
    counting_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(tmp_path / "cache")
    changed = tmp_path / "src"
    changed.mkdir()
    (changed / "scalar.cc").write_text("// another\n")
    monkeypatch.setattr(building, "SOURCES", changed)
    assert build(tmp_path / "cache") != first


def test_two_processes_build_at_once(counting_compiler: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from blockexport_kernels.ort_cpu.build import build\n"
        "print(build(pathlib.Path(sys.argv[1])).read_text())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == ["built", "built"]
    assert len(os.listdir(tmp_path / "cache")) == 1


def test_no_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NativeBuildError, match="no C\\+\\+ compiler"):
        find_compiler()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NativeBuildError, match="no-such-compiler"):
        build(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_failing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "failing-c++"
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.cc:1: error: too old" >&2\nexit 1\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(NativeBuildError, match="error: too old"):
        build(tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_importing_needs_numpy_only() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'blockexport'): sys.modules[name] = None\n"
        "import blockexport_kernels.ort_cpu.library, blockexport_kernels.ort_cpu.reference\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
