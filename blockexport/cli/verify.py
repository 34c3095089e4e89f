"""`blockexport verify`."""

from blockexport.cli.options import BundleArgument
from blockexport.cli.output import Output
from blockexport.cli.verb import GATE_FAILED, JsonFlag, Result, verb


@verb
def verify(bundle: BundleArgument, as_json: JsonFlag = False) -> Result:
    """Check a bundle's files, answers and graphs.

    Every byte is compared with the manifest, every level runs against the recorded answers of the eager reference,
    and every graph is searched for traces of skipped blocks. Exits 3 when something is wrong; engines of a bundle
    with damaged files are not opened.
    """
    from blockexport.runtime.verify import is_verified, verify_bundle

    checks = verify_bundle(bundle)
    passed = is_verified(checks)

    def show(output: Output) -> None:
        output.table(str(bundle), ("check", "status", "why"), [(c.id, c.status, c.why) for c in checks])
        failed = sum(check.status == "failed" for check in checks)
        output.line("verified" if passed else f"NOT verified: {failed} of {len(checks)} checks failed")

    value = {"ok": passed, "checks": [check.to_json() for check in checks]}
    return Result(value, show, 0 if passed else GATE_FAILED)
