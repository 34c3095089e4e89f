"""Reading single entries of a published `config.json`, with errors that name them."""

from collections.abc import Mapping
from typing import Any

from blockexport.errors import ModelSupportError

Entries = Mapping[str, Any]


def first(entries: Entries, *names: str) -> Any:
    """The first of some names that has a value, or None."""
    return next((entries[name] for name in names if entries.get(name) is not None), None)


def size(entries: Entries, *names: str, default: int | None = None) -> int:
    """A whole number above 0 under the first of some names that has a value.

    Raises:
        ModelSupportError: it is something else, or nowhere and without default.
    """
    value = first(entries, *names)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = f"config.json gives {value!r} for {' or '.join(names)}; a Molmo checkpoint needs a whole number above 0"
        raise ModelSupportError(msg)
    return value


def number(entries: Entries, name: str, default: float) -> float:
    """A number above 0.

    Raises:
        ModelSupportError: it is something else.
    """
    value = first(entries, name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        msg = f"config.json gives {value!r} for {name}; a Molmo checkpoint needs a number above 0"
        raise ModelSupportError(msg)
    return float(value)


def check_fixed(entries: Entries, fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse settings that the training code knows and no published checkpoint uses.

    Args:
        entries: of the configuration.
        fixed: name to the values under which the model computes what this package does.

    Raises:
        ModelSupportError: a setting has another value.
    """
    for name, allowed in fixed.items():
        if name in entries and entries[name] not in allowed:
            msg = f"config.json sets {name} to {entries[name]!r}; for Molmo only {allowed[0]!r} is supported"
            raise ModelSupportError(msg)
