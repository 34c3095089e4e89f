"""Opening a bundle for use."""

from pathlib import Path

from blockexport.bundle.reader import open_bundle
from blockexport.runtime.runtime import Runtime


def load(path: str | Path, *, threads: int = 0, verify: bool = True) -> Runtime:
    """Open a bundle.

    Args:
        path: the bundle's folder.
        threads: threads within an operator; 0 lets the backend choose.
        verify: whether every file's digest is compared before anything is opened.

    Returns:
        A runtime; its levels are opened when they are first used.

    Raises:
        BundleError: the folder is no bundle.
        IntegrityError: the bundle is damaged.
        SchemaVersionError: the bundle is of a format that this version cannot read.
    """
    return Runtime(open_bundle(Path(path), verify=verify), threads=threads)
