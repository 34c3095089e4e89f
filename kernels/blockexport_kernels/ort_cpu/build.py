"""Compiles the operators with the compiler of the host; the result runs on any processor of its architecture."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi")
# By the first word of a file's name. Which of these files' code runs is decided on the processor (src/paths.cc).
_X86_FLAGS = {
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx2", "-mfma"),
}
_IS_X86 = platform.machine().lower() in {"x86_64", "amd64"}


class NativeBuildError(RuntimeError):
    """The operators cannot be compiled here; the message says why and what to do."""


def find_compiler() -> str:
    """Path of a C++ compiler: $CXX, or the first of c++, g++, clang++ there is.

    Raises:
        NativeBuildError: There is none.
    """
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found is not None:
            return found
    tried = f"$CXX={wanted}" if wanted else "none of c++, g++ and clang++"
    msg = f"no C++ compiler: {tried} found; install g++ 12 or clang 15 or later, or set CXX"
    raise NativeBuildError(msg)


def build(cache_folder: Path) -> Path:
    """Path of the compiled library in cache_folder, compiled now unless this source and compiler did it before.

    Two processes may build at once: each writes aside and renames.

    Raises:
        NativeBuildError: There is no compiler, or it fails.
    """
    if sys.platform == "win32":
        msg = "the operators are built for Linux and macOS only; leave them out on Windows"
        raise NativeBuildError(msg)
    compiler = find_compiler()
    library = cache_folder / f"blockexport_ort_cpu-{_digest(compiler)}.so"
    if library.is_file():
        return library
    cache_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder, prefix=".building-") as aside:
        built = _compile_and_link(compiler, Path(aside))
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.replace(library)
    return library


def _digest(compiler: str) -> str:
    """Of all that decides what comes out: sources, flags, compiler, architecture."""
    digest = hashlib.sha256(_run([compiler, "--version"]).encode())
    digest.update(repr((_FLAGS, _X86_FLAGS, platform.machine(), sys.platform)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def _compile_and_link(compiler: str, folder: Path) -> Path:
    sources = [path for path in sorted(SOURCES.glob("*.cc")) if _IS_X86 or _group(path) not in _X86_FLAGS]
    objects = [folder / f"{path.stem}.o" for path in sources]

    def compile_one(source: Path, target: Path) -> None:
        extra = _X86_FLAGS.get(_group(source), ())
        _run([compiler, *_FLAGS, *extra, "-c", str(source), "-o", str(target)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    library = folder / "library.so"
    _run([compiler, "-shared", *map(str, objects), "-o", str(library)])
    return library


def _group(source: Path) -> str:
    return source.stem.split("_", maxsplit=1)[0]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own arguments
    if done.returncode != 0:
        first_error = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:300])
        msg = f"{command[0]} failed with status {done.returncode}: {first_error}; g++ 12 or clang 15 or later is needed"
        raise NativeBuildError(msg)
    return done.stdout
