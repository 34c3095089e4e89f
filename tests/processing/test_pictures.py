import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from blockexport.errors import RequestError
from blockexport.processing import pictures
from blockexport.processing.pictures import read_picture

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def claimed_png(width, height):
    """A PNG file of a few bytes that says it holds width x height pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_path_bytes_an_image_and_an_array_are_the_same_picture(tmp_path):
    image = Image.fromarray(COLOURS)
    path = tmp_path / "a.png"
    image.save(path)
    for given in (path, str(path), path.read_bytes(), image, COLOURS):
        np.testing.assert_array_equal(read_picture(given), COLOURS)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_other_modes_become_red_green_and_blue(mode):
    image = Image.fromarray(RAMP).convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    picture = read_picture(encoded(image, kind))
    assert picture.shape == (3, 4, 3)
    expected = np.where(RAMP > 127, 255, 0) if mode == "1" else RAMP
    if mode == "1":
        assert set(np.unique(picture)) == {0, 255}
    else:
        np.testing.assert_array_equal(picture, np.repeat(expected[:, :, None], 3, axis=2))


def test_a_palette_gives_its_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(read_picture(encoded(image)), [[[10, 20, 30], [200, 100, 50]]])


def test_transparency_is_dropped():
    image = Image.new("RGBA", (1, 1), (10, 20, 30, 0))
    np.testing.assert_array_equal(read_picture(encoded(image)), [[[10, 20, 30]]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_brought_down_to_eight(kind):
    deep = RAMP.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_picture(encoded(Image.fromarray(deep), kind))[:, :, 0], RAMP)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_a_mode_without_a_white_is_refused(dtype):
    with pytest.raises(RequestError, match="does not say what is white"):
        read_picture(Image.fromarray(RAMP.astype(dtype)))


def test_a_picture_is_turned_as_its_exif_data_say():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    picture = read_picture(encoded(Image.fromarray(COLOURS), exif=exif))
    np.testing.assert_array_equal(picture, np.rot90(COLOURS, -1))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("L", (2, 2), value) for value in (40, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (read_picture(data) == 40).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_cut_file_is_refused(kind):
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), kind)
    with pytest.raises(RequestError, match="cannot be read as a picture"):
        read_picture(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(RequestError, match="cannot be read as a picture"):
        read_picture(data)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "a.png"
    data = bytearray(encoded(Image.fromarray(COLOURS)))
    data[60:80] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(RequestError, match=r"a\.png cannot be read"):
        read_picture(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"no picture at .*none\.png"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(RequestError, match="cannot be read"):
        read_picture(tmp_path)


@pytest.mark.parametrize("side", [8193, 10_000, 60_000])
def test_a_bomb_is_refused_before_it_is_decoded(side, monkeypatch):
    """At 10,000 pixels a side Pillow itself only warns, at 60,000 it refuses: here it is one error."""
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(RequestError, match=r"is too large .*at most 67108864 pixels"):
        read_picture(claimed_png(side, side))


def test_a_large_array_or_image_is_refused_too(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PICTURE_PIXELS", 11)
    for given in (COLOURS, Image.fromarray(COLOURS)):
        with pytest.raises(RequestError, match="4 x 3 pixels"):
            read_picture(given)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
    ],
)
def test_arrays_of_another_form_are_refused(array):
    with pytest.raises(RequestError, match=r"give uint8 of shape \(height, width, 3\)"):
        read_picture(array)
