from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.bundle.sealed import seal, unseal
from blockexport.errors import ConfigError, IntegrityError

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.dictionaries(
    TEXT, st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT, max_size=4
)


@given(VALUES)
def test_round_trip(value: dict[str, Any]) -> None:
    assert unseal(seal(value, "__seal"), "__seal", "x") == value


@given(VALUES, st.data())
def test_a_flipped_byte_is_noticed(value: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(seal(value, "__seal"))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(IntegrityError, match=r"^x "):
        unseal(bytes(raw), "__seal", "x")


def test_a_seal_of_another_value_or_none_is_noticed() -> None:
    other = seal({"a": 1}, "seal").replace(b'"a": 1', b'"a": 2')
    for raw in (other, b'{\n  "a": 1\n}\n', b'{\n  "seal": null\n}\n', b'{\n  "seal": ""\n}\n'):
        with pytest.raises(IntegrityError, match="does not match its own seal"):
            unseal(raw, "seal", "x")


@pytest.mark.parametrize("value", [float("nan"), object(), {1}, b"", "\udc80"])
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError):
        seal({"a": value}, "seal")
