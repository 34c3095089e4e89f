"""Who takes part in `bench_peers.py`, and the process in which each one is measured."""

import json
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from blockexport.report.memory import read_pss_bytes

RUNNERS = Path(__file__).with_name("peers")
OURS = "blockexport"


class NotRunError(Exception):
    """Why a contender was not measured."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run the model.

    Attributes:
        name: as tables show it; unique among those of one precision.
        peer: whose virtual environment runs it, and the name of its runner.
        precision: what it competes in.
        format: what the peer calls that.
        is_converted: whether the peer wants files of its own, made of a checkpoint.
        not_run: why it cannot take part whatever is installed.
    """

    name: str
    peer: str
    precision: str
    format: str
    is_converted: bool = True
    not_run: str = ""

    @property
    def runner(self) -> Path:
        """The script that its interpreter runs."""
        return RUNNERS / f"{self.peer}.py"


_NO_INTEGERS = "transformers stores integer weights for CPUs only through torchao, which is not installed here"
CONTENDERS = (
    Contender(OURS, "ours", "fp32", "auto", is_converted=False),
    Contender("transformers eager", "hf", "fp32", "eager", is_converted=False),
    Contender("transformers compiled", "hf", "fp32", "compile", is_converted=False),
    Contender("onnxruntime-genai", "genai", "fp32", "fp32"),
    Contender("OpenVINO GenAI", "ov", "fp32", "fp32"),
    Contender("llama.cpp", "llama", "fp32", "f32"),
    Contender(OURS, "ours", "int8", "auto", is_converted=False),
    Contender("transformers", "hf", "int8", "", not_run=_NO_INTEGERS),
    Contender("onnxruntime-genai", "genai", "int8", "int8g32"),
    Contender("OpenVINO GenAI", "ov", "int8", "int8"),
    Contender("llama.cpp", "llama", "int8", "q8_0"),
    Contender(OURS, "ours", "int4", "auto", is_converted=False),
    Contender("transformers", "hf", "int4", "", not_run=_NO_INTEGERS),
    Contender("onnxruntime-genai, blocks of 32", "genai", "int4", "int4g32"),
    Contender("onnxruntime-genai, blocks of 64", "genai", "int4", "int4g64"),
    Contender("OpenVINO GenAI, int8 head", "ov", "int4", "int4g64"),
    Contender("OpenVINO GenAI", "ov", "int4", "int4g64_all"),
    Contender("llama.cpp, int8 head", "llama", "int4", "q4_0"),
    Contender("llama.cpp", "llama", "int4", "q4_0_pure"),
)


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are.

    Attributes:
        interpreters: by peer.
        checkpoints: by depth.
        bundles: by precision.
        work: keeps what peers make of the checkpoints, and what they print.
    """

    interpreters: dict[str, str]
    checkpoints: dict[int, Path]
    bundles: dict[str, Path]
    work: Path

    def model_of(self, contender: Contender, depth: int) -> Path:
        """What the contender loads; converted if that was not done yet.

        Raises:
            NotRunError: there is none.
        """
        if contender.not_run:
            raise NotRunError(contender.not_run)
        if contender.peer not in self.interpreters:
            msg = f"no interpreter was given; install it and add --peer {contender.peer}=PATH/bin/python"
            raise NotRunError(msg)
        if shutil.which(self.interpreters[contender.peer]) is None:
            msg = f"{self.interpreters[contender.peer]} is no interpreter; give the one of its virtual environment"
            raise NotRunError(msg)
        if contender.name == OURS:
            return self.bundles[contender.precision]
        if not contender.is_converted:
            return self.checkpoints[depth]
        model = self.work / f"{contender.peer}-{contender.format}-d{depth}"
        if not model.exists():
            self._convert(contender, depth, model)
        return model

    def _convert(self, contender: Contender, depth: int, model: Path) -> None:
        aside = model.with_name(f".{model.name}.{os.getpid()}")
        log = self.log_of(contender, depth, "convert")
        try:
            command = [*self.command(contender, self.checkpoints[depth], depth), "--convert-to", str(aside)]
            with log.open("w") as output:
                done = subprocess.run(command, stdout=output, stderr=output, check=False)
            if done.returncode:
                msg = f"its converter failed: {last_line(log)}"
                raise NotRunError(msg)
            aside.rename(model)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def command(self, contender: Contender, model: Path, depth: int) -> list[str]:
        """How its runner is called, up to what it shall do."""
        options = {"--model": str(model), "--format": contender.format, "--depth": str(depth)}
        return [
            self.interpreters[contender.peer],
            str(contender.runner),
            *(part for pair in options.items() for part in pair),
        ]

    def log_of(self, contender: Contender, depth: int, step: str) -> Path:
        """Where it prints to."""
        folder = self.work / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{contender.peer}-{contender.precision}-{contender.format}-d{depth}-{step}.log"


def last_line(log: Path) -> str:
    """What a process said last, which of a Python process is its error."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


class Running:
    """A contender that has loaded its model and answers rounds.

    Attributes:
        model: what it loaded.
        ready: what it said about itself.
        peak_pss_bytes: the largest PSS seen behind loading and behind each round.
    """

    def __init__(self, contender: Contender, depth: int, threads: int, places: Places) -> None:
        self.model = places.model_of(contender, depth)
        command = [*places.command(contender, self.model, depth), "--threads", str(threads)]
        self._log = places.log_of(contender, depth, "serve")
        # Libraries that size their pools before the runner can say anything read this.
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True, env=environment
            )
        self.peak_pss_bytes = 0
        self.ready = self._answer()

    def round(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """Continue a prompt.

        Raises:
            NotRunError: the process has ended.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps({"prompt": prompt, "new_tokens": new_tokens}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        rollup = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text(encoding="ascii")
        self.peak_pss_bytes = max(self.peak_pss_bytes, read_pss_bytes(rollup))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> NotRunError:
        # -9 is what a process that memory did not suffice for ends with.
        return NotRunError(f"its process ended with {self._process.wait()}: {last_line(self._log)}")

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
