"""Text comes in whole characters and without stop strings, however tokens are cut."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.server.text import StopStrings, TextStream


class Bytes:
    """A tokenizer of bytes: token 0 to 255 is one byte, and the first byte of a text loses a blank in front."""

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode("utf-8", errors="replace").removeprefix(" ")


def pieces_of(tokens: bytes) -> list[str]:
    stream = TextStream(Bytes())
    return [*(stream.push(token) for token in tokens), stream.flush()]


@given(st.text(max_size=40))
def test_pieces_are_the_text(text: str) -> None:
    pieces = pieces_of(text.encode())
    assert "".join(pieces) == text.removeprefix(" ")
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_character_waits_for_its_last_byte() -> None:
    assert pieces_of("a€b".encode()) == ["a", "", "", "€", "b", ""]


def test_what_never_becomes_a_character_is_shown_at_last() -> None:
    pieces = pieces_of(b"a" + b"\xff" * 100 + b"b")
    assert len("".join(pieces)) == 102
    # It does not wait for the end: memory and time of a token stay bounded.
    assert sum(bool(piece) for piece in pieces) > 5
    assert pieces_of(b"a\xe2")[-1] == "\N{REPLACEMENT CHARACTER}"


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), min_size=30, max_size=30),
)
def test_a_stop_string_ends_the_text_wherever_it_is_cut(text: str, stops: list[str], sizes: list[int]) -> None:
    found = StopStrings(stops)
    shown, rest = "", text
    for size in sizes:
        shown += found.push(rest[:size])
        rest = rest[size:]
        assert not any(stop in shown for stop in stops)
    shown += found.flush()
    ends = [text.find(stop) for stop in stops if stop in text]
    assert found.is_stopped == bool(ends)
    if not ends:
        assert shown == text
    else:
        # Of stops that come with one piece the earliest counts; a later one that ended before is no surprise.
        assert text.startswith(shown)
        assert len(shown) == min(ends) or any(text[len(shown) :].startswith(stop) for stop in stops)


@pytest.mark.parametrize(("pieces", "shown"), [(["ab", "c"], "a"), (["a", "bcd"], "a"), (["xb", "x"], "xbx")])
def test_examples(pieces: list[str], shown: str) -> None:
    found = StopStrings(["bc"])
    assert "".join(map(found.push, pieces)) + found.flush() == shown


def test_nothing_follows_a_stop() -> None:
    found = StopStrings(["b"])
    assert [found.push("ab"), found.push("c"), found.flush()] == ["a", "", ""]


def test_a_real_tokenizer_writes_the_same_at_once_and_in_pieces() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "naïve 日本語 🎉 done"
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode(text).ids]
    assert "".join(pieces) == text
    assert len(pieces) == len(text.encode())
