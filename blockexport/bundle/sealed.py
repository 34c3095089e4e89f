"""JSON objects that carry their own SHA-256, in one canonical form: a flipped byte anywhere is noticed.

The digest is over the canonical bytes with an empty digest in place. It guards against damage, not against an
attacker, who can compute it too.
"""

import hashlib
import json
from typing import Any

from blockexport.core.jsonio import dump_json
from blockexport.errors import ConfigError, IntegrityError


def seal(value: dict[str, Any], field: str) -> bytes:
    """Canonical bytes of `value` with its digest as the last field.

    Raises:
        ConfigError: the value is not JSON, or holds a NaN.
    """
    try:
        digest = hashlib.sha256(_canonical(value, field, "")).hexdigest()
        return _canonical(value, field, digest)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"a value to be written cannot be said in JSON ({error}); use plain text, numbers, lists and objects"
        raise ConfigError(msg) from error


def _canonical(value: dict[str, Any], field: str, digest: str) -> bytes:
    return (dump_json({**value, field: digest}) + "\n").encode()


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object from bytes that may be anything.

    Raises:
        IntegrityError: they are no JSON object.
    """
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        msg = f"{what} is not valid JSON ({error}); restore it from a copy or make it again"
        raise IntegrityError(msg) from error
    if not isinstance(value, dict):
        msg = f"{what} holds {type(value).__name__}, not a JSON object; restore it from a copy or make it again"
        raise IntegrityError(msg)
    return value


def unseal(raw: bytes, field: str, what: str) -> dict[str, Any]:
    """The object that `seal` was given.

    Raises:
        IntegrityError: the bytes are not exactly what `seal` writes.
    """
    value = parse_object(raw, what)
    given = value.pop(field, None)
    try:
        intact = given is not None and seal(value, field) == raw
    except ConfigError:
        intact = False
    if not intact:
        msg = f"{what} does not match its own {field}, so it was damaged or edited; restore it or make it again"
        raise IntegrityError(msg)
    return value
