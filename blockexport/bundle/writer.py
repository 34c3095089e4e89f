"""Writing a bundle: everything beside its place, the manifest last, then one step into place."""

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from blockexport.bundle.disk import Tree, file_sha256, flush_tree, scan_tree, write_errors
from blockexport.bundle.layout import MANIFEST_FILE, WEIGHTS_FILE, check_path
from blockexport.bundle.manifest import FileEntry, Manifest, ManifestDraft, WeightsEntry, explain
from blockexport.bundle.swap import create_staging, exclusive, put_back, put_in_place, remove_abandoned
from blockexport.bundle.weights import read_locations
from blockexport.core.jsonio import write_atomically
from blockexport.errors import BundleError, ConfigError


class BundleWriter:
    """Collects the files of a bundle in a hidden folder beside its place; `commit` puts them there.

        with BundleWriter(Path("bundle")) as writer:
            write_weights(writer.path_for(WEIGHTS_FILE), tensors)
            writer.add_bytes(engine_file("d6", "ort"), graph)
            writer.commit(draft)

    Leaving the block without `commit`, by an error or not, deletes the hidden folder; what was at `out` stays as it
    was. Several writers of one place do not disturb one another; the last to commit wins. The profiles of a bundle
    that is replaced go with it, since they were measured on its engines.

    Args:
        out: where the bundle goes; missing, an empty folder, or a bundle. A link to a folder is followed.
        overwrite: whether a bundle there may be replaced.
    """

    def __init__(self, out: Path, overwrite: bool = True) -> None:
        # The hidden folder must be on the file system of the real place.
        self._out = Path(os.path.realpath(out))
        self._overwrite = overwrite
        self._staging: Path | None = None
        self._lock = -1

    def __enter__(self) -> Self:
        with write_errors(self._out):
            self._out.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self._out):
                put_back(self._out)
                self._require_replaceable()
                remove_abandoned(self._out)
                self._staging, self._lock = create_staging(self._out)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        staging, self._staging = self._staging, None
        if staging is not None:
            # After a commit this is what was replaced, or nothing.
            shutil.rmtree(staging, ignore_errors=True)
            os.close(self._lock)

    @property
    def folder(self) -> Path:
        """Where the files go until `commit`; all that lies in it then becomes part of the bundle.

        Raises:
            BundleError: the writer was not entered, was left, or has committed.
        """
        if self._staging is None:
            msg = f"the writer of {self._out} is not open; use it in a `with` block and before `commit`"
            raise BundleError(msg)
        return self._staging

    def path_for(self, path: str) -> Path:
        """Where to write the file that the bundle will have under `path`; its folder exists afterwards.

        Raises:
            BundleError: a bundle may not have a file under that path.
        """
        try:
            target = self.folder / check_path(path)
        except ValueError as error:
            raise BundleError(str(error)) from error
        with write_errors(self._out):
            target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def add_bytes(self, path: str, data: bytes) -> Path:
        """Write one file and return where it lies for now.

        Raises:
            BundleError: the path is not allowed, or the disk refuses.
        """
        target = self.path_for(path)
        with write_errors(self._out):
            target.write_bytes(data)
        return target

    def add_tree(self, source: Path, path: str) -> None:
        """Copy the contents of all files under a folder; links to files are followed, as the HF cache has them.

        Raises:
            BundleError: there is no such folder, it holds links to folders, a path is not allowed, or the disk
                refuses.
        """
        if not source.is_dir():
            msg = f"{source} is not a folder; give the folder whose files belong under {path!r}"
            raise BundleError(msg)
        for entry in sorted(source.rglob("*")):
            if entry.is_dir() and entry.is_symlink():
                msg = f"{entry} is a link to a folder; copy the folder itself there"
                raise BundleError(msg)
            if not entry.is_dir():
                target = self.path_for(f"{path}/{entry.relative_to(source).as_posix()}")
                with write_errors(self._out):
                    shutil.copyfile(entry, target)

    def commit(self, draft: ManifestDraft) -> Manifest:
        """Hash all files, write the manifest, flush everything to disk and take the bundle's place.

        Returns:
            The manifest as written.

        Raises:
            BundleError: the weights are missing or badly laid out, the manifest does not fit the files, the place
                is taken meanwhile, or the disk refuses.
        """
        folder = self.folder
        with write_errors(self._out):
            tree = self._scan()
            manifest = self._complete(draft, tree)
            flush_tree(folder, tree)
            write_atomically(folder / MANIFEST_FILE, manifest.to_bytes())
            with exclusive(self._out):
                put_back(self._out)
                self._require_replaceable()
                put_in_place(folder, self._out)
            shutil.rmtree(folder, ignore_errors=True)
        return manifest

    def _scan(self) -> Tree:
        for folder in sorted(scan_tree(self.folder).folders, reverse=True):
            if not any((self.folder / folder).iterdir()):
                (self.folder / folder).rmdir()
        tree = scan_tree(self.folder)
        if tree.others:
            msg = f"{sorted(tree.others)} are links or devices; a bundle holds only regular files, copy them"
            raise BundleError(msg)
        return tree

    def _complete(self, draft: ManifestDraft, tree: Tree) -> Manifest:
        if WEIGHTS_FILE not in tree.files:
            msg = f"no {WEIGHTS_FILE} among {sorted(tree.files)}; write it with write_weights before commit"
            raise BundleError(msg)
        num_tensors = len(read_locations(self.folder / WEIGHTS_FILE))
        try:
            files = tuple(
                FileEntry(path=path, size_bytes=size, sha256=file_sha256(self.folder / path))
                for path, size in sorted(tree.files.items())
            )
            weights = WeightsEntry(path=WEIGHTS_FILE, size_bytes=tree.files[WEIGHTS_FILE], num_tensors=num_tensors)
            fields = {name: getattr(draft, name) for name in ManifestDraft.model_fields}
            manifest = Manifest(**fields, weights=weights, files=files)
            manifest.to_bytes()
        except ValidationError as error:
            msg = f"the bundle's manifest cannot be right: {explain(error)}"
            raise BundleError(msg) from error
        except ConfigError as error:
            msg = f"the bundle's manifest cannot be written: {error}"
            raise BundleError(msg) from error
        return manifest

    def _require_replaceable(self) -> None:
        out = self._out
        if not os.path.lexists(out):
            return
        if not out.is_dir():
            msg = f"{out} exists and is not a folder; give a new path, an empty folder or an existing bundle"
            raise BundleError(msg)
        if not any(out.iterdir()):
            return
        if not looks_like_bundle(out):
            msg = f"{out} is a folder with other files in it and no bundle; give another path or empty it yourself"
            raise BundleError(msg)
        if not self._overwrite:
            msg = f"{out} is a bundle already; give another path or allow overwriting"
            raise BundleError(msg)


def looks_like_bundle(folder: Path) -> bool:
    """Whether replacing the folder loses no more than a bundle, be it a damaged one.

    Other programs call a file manifest.json too, hence the look at what is in it.
    """
    try:
        text = (folder / MANIFEST_FILE).read_bytes()
    except OSError:
        return False
    return b'"schema_version"' in text and b'"levels"' in text
