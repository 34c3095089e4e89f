"""One check in a process of its own: a line of JSON on the standard output for each thing found."""

import json
import sys
from contextlib import redirect_stdout
from typing import TextIO

from blockexport.errors import BackendUnavailableError
from blockexport.gpu_report.checks import CHECKS
from blockexport.gpu_report.driver import find_gpu
from blockexport.gpu_report.finding import Check, Finding


def run(check: Check, output: TextIO) -> None:
    """Write down what a check finds; what this host does not have is no failure."""
    try:
        if check.tier == "gpu":
            find_gpu()
        for finding in check.run():
            _write(finding, output)
    except (BackendUnavailableError, ImportError) as error:
        _write(Finding(check.name, check.tier, "not_run", f"{type(error).__name__}: {error}"), output)
    except Exception as error:  # noqa: BLE001  (whatever a check meets is a finding)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        _write(Finding(check.name, check.tier, "fail", text), output)


def _write(finding: Finding, output: TextIO) -> None:
    print(json.dumps(finding.to_json()), file=output, flush=True)


def main(name: str) -> None:
    """Run the check of that name."""
    (check,) = (check for check in CHECKS if check.name == name)
    output = sys.stdout
    # Libraries print; only findings may go where the parent reads.
    with redirect_stdout(sys.stderr):
        run(check, output)


if __name__ == "__main__":
    main(sys.argv[1])
