"""Figures as people read them."""

import pytest

from blockexport.report.markup import bytes_text, number, round_text, with_error


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.0, "1.00"),
        (12.345, "12.3"),
        (1234.5, "1234"),
        (0.001, "0.00100"),
        (0.00099, "0.00099"),
        (-0.5, "-0.500"),
        (3e-7, "3e-07"),
        (2e9, "2e+09"),
        (float("inf"), "inf"),
    ],
)
def test_round_text(value, text):
    assert round_text(value) == text


def test_numbers_keep_their_exact_value():
    assert number(1 / 3, unit="ms") == '<data value="0.3333333333333333">0.333</data>\u00a0ms'


@pytest.mark.parametrize(
    ("value", "stderr", "shown"),
    [
        (0.97777, 0.0078, "0.9778 ± 0.0078"),
        (1.2345, 0.12, "1.23 ± 0.12"),
        (1.0, 0.0, "1.000 ± 0.000"),
        (55.5, 13, "56 ± 13"),
    ],
)
def test_errors_decide_the_decimals(value, stderr, shown):
    text = with_error(value, stderr)
    assert f'value="{value!r}"' in text
    plain = text.replace("</data>", "").replace('<span class="soft">', "").replace("</span>", "").split(">")[1]
    assert plain == shown


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (13_200_000, "13.2 MB")])
def test_sizes(size, text):
    assert bytes_text(size).replace("\u00a0", " ") == text
