"""`python -m blockexport.gpu_report --out report.json`."""

import argparse
import sys
from pathlib import Path

from blockexport.gpu_report.checks import CHECKS
from blockexport.gpu_report.report import Report, run_checks


def main(arguments: list[str] | None = None) -> int:
    """Make the report; 0 if all that could run passed, 1 if something failed, 2 if nothing could run."""
    names = [check.name for check in CHECKS]
    parser = argparse.ArgumentParser(prog="python -m blockexport.gpu_report", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the report, written anew after each finding")
    parser.add_argument("--only", nargs="+", choices=names, help="leave the other checks out")
    given = parser.parse_args(arguments)
    report = Report(given.out)
    run_checks(report, [check for check in CHECKS if given.only is None or check.name in given.only])
    for finding in report.findings:
        print(f"{finding.status:8} {finding.tier:4} {finding.id}  {finding.why}")  # noqa: T201  (what was asked for)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
