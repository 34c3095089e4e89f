"""The picture for a README."""

import struct

import pytest

from blockexport.core.jsonio import dump_json
from blockexport.errors import BundleError, ConfigError
from blockexport.report import save_ladder_plot
from blockexport.report.plots import axis_label
from blockexport.report.style import draw_svg


def png_size(path) -> tuple[int, int]:
    raw = path.read_bytes()
    assert raw.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", raw[16:24])
    return width, height


def test_a_panel_is_drawn_for_each_source(write_bundle, make_study, tmp_path):
    folder = write_bundle(attached={"study.json": dump_json(make_study().to_json()).encode()})
    one = save_ladder_plot(make_study(), tmp_path / "one.png")
    two = save_ladder_plot([make_study(), folder], tmp_path / "two.png")
    assert png_size(two)[0] > png_size(one)[0]
    assert png_size(two)[1] == png_size(one)[1]


def test_the_same_study_gives_the_same_bytes(make_study, tmp_path):
    first = save_ladder_plot(make_study(), tmp_path / "a.png").read_bytes()
    assert save_ladder_plot(make_study(), tmp_path / "b.png").read_bytes() == first
    assert save_ladder_plot(make_study(model="other"), tmp_path / "c.png").read_bytes() != first


def test_a_bundle_without_study_and_no_source_at_all_are_refused(write_bundle, tmp_path):
    with pytest.raises(BundleError, match=r"study\.json"):
        save_ladder_plot(write_bundle(), tmp_path / "plot.png")
    with pytest.raises(ConfigError, match="no study to plot"):
        save_ladder_plot([], tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


def test_axes_say_which_direction_is_better():
    assert axis_label("bits_per_byte") == "bits per UTF-8 byte, lower is better"
    assert axis_label("exact_match") == "exact match, higher is better"
    assert axis_label("own_metric") == "own metric"


def test_dollar_signs_and_markup_in_names_are_drawn_as_they_are():
    svg = draw_svg("x", "l", (3, 2), lambda figure, theme: figure.subplots().set_title("$a$ <b> & c"))
    assert "$a$ &lt;b&gt; &amp; c" in svg
