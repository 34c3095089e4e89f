"""`blockexport inspect`."""

from blockexport.bundle.manifest import Manifest
from blockexport.cli.options import BundleArgument
from blockexport.cli.output import Output, quality_text
from blockexport.cli.verb import JsonFlag, Result, verb


@verb
def inspect(bundle: BundleArgument, as_json: JsonFlag = False) -> Result:
    """Show what a bundle says of itself.

    Sizes are checked, digests are not; see verify.
    """
    from blockexport.bundle.reader import open_bundle

    manifest = open_bundle(bundle, verify=False).manifest
    return Result(manifest.model_dump(mode="json"), lambda output: _show(output, manifest))


def _show(output: Output, manifest: Manifest) -> None:
    spec = manifest.model
    output.line(f"{spec.name}: {spec.architecture}, {spec.kind}, {spec.num_blocks} blocks, digest {spec.digest[:16]}")
    output.line(f"ladder by {manifest.strategy}; weights {manifest.weights.size_bytes / 1e6:.1f} MB")
    for note in manifest.notes:
        output.line(f"note: {note}")
    rows = [
        (
            name,
            level.depth,
            level.skipped,
            level.precision,
            [f"{engine.backend}/{engine.target}" for engine in level.engines],
            quality_text(level.quality),
        )
        for name, level in manifest.all_levels.items()
    ]
    output.table("Levels", ("level", "blocks", "skipped", "weights", "engines", "quality"), rows)
    files = [(entry.path, entry.size_bytes, entry.sha256[:16]) for entry in manifest.files]
    output.table("Files", ("file", "bytes", "SHA-256"), files)
    output.table("Built with", ("package", "version"), list(manifest.tools.items()))
