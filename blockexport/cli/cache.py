"""`blockexport cache`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockexport.cli.output import Output
from blockexport.cli.verb import JsonFlag, Result, verb

if TYPE_CHECKING:
    from blockexport.runtime.packed_entry import PackedEntry


class Action(StrEnum):
    """What to do with the cache."""

    list = "list"
    clear = "clear"


@verb
def cache(
    action: Annotated[Action, typer.Argument(help="`clear` leaves what is in use.")],
    cache_dir: Annotated[
        Path | None, typer.Option(help="The cache; $BLOCKEXPORT_CACHE or the user's cache folder unless given.")
    ] = None,
    as_json: JsonFlag = False,
) -> Result:
    """List or clear the weights that were packed for this host, which make loading several levels cheap.

    They are made again when they are next wanted.
    """
    from blockexport.runtime.packed_cache import PackedCache

    packed = PackedCache(cache_dir)
    entries = packed.clear() if action is Action.clear else packed.entries()
    size_bytes = sum(entry.size_bytes for entry in entries)

    def show(output: Output) -> None:
        what = "removed" if action is Action.clear else "kept"
        _show_entries(output, f"packed weights {what} in {packed.folder}", entries)
        output.line(f"{what}: {len(entries)} bundles, {size_bytes / 1e6:.1f} MB")

    value = {
        "action": action.value,
        "folder": str(packed.folder),
        "size_bytes": size_bytes,
        "entries": [entry.to_json() for entry in entries],
    }
    return Result(value, show)


def _show_entries(output: Output, title: str, entries: "Sequence[PackedEntry]") -> None:
    rows = [
        (
            entry.key,
            entry.bundle_sha256[:16],
            f"{entry.size_bytes / 1e6:.1f}",
            datetime.fromtimestamp(entry.last_used_s, UTC).strftime("%Y-%m-%d %H:%M"),
            entry.in_use,
        )
        for entry in entries
    ]
    output.table(title, ("key", "bundle", "MB", "last used, UTC", "in use"), rows)
