"""What opening a bundle costs in memory, measured in fresh processes.

The proportional set size (PSS) counts a page that n processes share as 1/n, so the sum over processes is what the
machine really holds; resident size would count a shared weight file once for each.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from blockexport.runtime import load

_ROLLUP = Path("/proc/self/smaps_rollup")
_TIMEOUT_S = 120
_CHILD = "import sys; from blockexport.report.memory import main; print(main(sys.argv[1], int(sys.argv[2])))"


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """PSS in bytes.

    Attributes:
        none_bytes: interpreter, libraries and an open bundle, but no engine.
        deepest_bytes: with the deepest level opened and run once.
        all_bytes: with every level opened and run once.
        num_levels: how many these are.
    """

    none_bytes: int
    deepest_bytes: int
    all_bytes: int
    num_levels: int


def measure_memory(bundle: Path, num_levels: int) -> MemoryUse | str:
    """Open the bundle in three fresh processes with no, one and all levels; or why that could not be measured."""
    if not _ROLLUP.exists():
        return f"this system has no {_ROLLUP}, which tells shared from private memory"
    sizes = []
    for count in (0, 1, num_levels):
        outcome = _measure_apart(bundle, count)
        if isinstance(outcome, str):
            return outcome
        sizes.append(outcome)
    none_bytes, deepest_bytes, all_bytes = sizes
    return MemoryUse(none_bytes, deepest_bytes, all_bytes, num_levels)


def _measure_apart(bundle: Path, count: int) -> int | str:
    command = [sys.executable, "-c", _CHILD, str(bundle), str(count)]
    # The child must find the same packages, however this process came to find them.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        done = subprocess.run(  # noqa: S603  (this interpreter with a module of our own)
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
        return int(done.stdout)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        return f"the process that opens {count} levels ended with {error.returncode}: {last}"
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"the process that opens {count} levels gave no figure: {error}"


def main(bundle: str, count: int) -> int:
    """Open and run the first levels of a bundle, and say what this process now takes, in bytes of PSS."""
    runtime = load(bundle, verify=False)
    # Pages that nothing has touched are not in memory yet.
    runtime.warm_up([level.name for level in runtime.levels[:count]])
    return read_pss_bytes(_ROLLUP.read_text(encoding="ascii"))


def read_pss_bytes(rollup: str) -> int:
    """The `Pss` line of an smaps_rollup file, in bytes.

    Raises:
        ValueError: there is none.
    """
    for line in rollup.splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) * 1024
    msg = "no line Pss in smaps_rollup"
    raise ValueError(msg)
