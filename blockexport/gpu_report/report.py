"""Runs checks one after the other, each in a process of its own, and writes down what each finds as soon as it does."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.gpu_report.environment import describe_host
from blockexport.gpu_report.finding import Check, Finding

LIMIT_S = 470.0
"""All checks together; what is left when it is over is not run."""
_MAX_WHY = 600


class Report:
    """A file that always holds all that is known.

    Args:
        path: where.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._host = describe_host()
        self._started = time.perf_counter()
        self.findings: list[Finding] = []
        self._flush()

    @property
    def seconds(self) -> float:
        """Since the report was begun."""
        return time.perf_counter() - self._started

    @property
    def exit_code(self) -> int:
        """0 if all that could run passed, 1 if something failed, 2 if nothing could run."""
        statuses = {finding.status for finding in self.findings}
        return 1 if "fail" in statuses else 0 if "pass" in statuses else 2

    def add(self, finding: Finding) -> None:
        """Write one more finding down."""
        self.findings.append(finding)
        self._flush()

    def to_json(self) -> dict[str, Any]:
        """The whole report."""
        statuses = [finding.status for finding in self.findings]
        summary = {status: statuses.count(status) for status in sorted(set(statuses))}
        on_gpu = sum(finding.tier == "gpu" and finding.status != "not_run" for finding in self.findings)
        return {
            "host": self._host,
            "checks": [finding.to_json() for finding in self.findings],
            "summary": summary | {"gpu_checks_run": on_gpu, "seconds": self.seconds, "exit_code": self.exit_code},
        }

    def _flush(self) -> None:
        write_atomically(self._path, (dump_json(self.to_json()) + "\n").encode())


def run_checks(report: Report, checks: Sequence[Check], limit_s: float = LIMIT_S) -> None:
    """Run checks until the time is over."""
    for check in checks:
        left_s = limit_s - report.seconds
        if left_s <= 0:
            report.add(Finding(check.name, check.tier, "not_run", f"no time left after {limit_s:g} s"))
            continue
        for finding in _in_process(check, min(check.limit_s, left_s)):
            report.add(finding)


def _in_process(check: Check, limit_s: float) -> Iterator[Finding]:
    """What a check finds in a process of its own: a GPU that has failed once is of no use to that process any more."""
    command = [sys.executable, "-m", "blockexport.gpu_report.worker", check.name]
    # Our own interpreter and module; the name is that of a check in the list.
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        timer = threading.Timer(limit_s, _end, [process])
        errors: list[str] = []
        drain = threading.Thread(target=lambda: errors.append(process.stderr.read() if process.stderr else ""))
        timer.start()
        drain.start()
        try:
            for line in process.stdout or ():
                yield Finding(**json.loads(line))
            code = process.wait()
        finally:
            is_over = not timer.is_alive()
            timer.cancel()
            _end(process)
            drain.join()
    if is_over:
        yield Finding(check.name, check.tier, "not_run", f"ended after {limit_s:.0f} s; what it found before stands")
    elif code:
        yield Finding(check.name, check.tier, "fail", f"its process ended with {code}: {''.join(errors)[-_MAX_WHY:]}")


def _end(process: subprocess.Popen[str]) -> None:
    """End a check and the compilers that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
