"""BMP files of every header and row order, against Pillow."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import SourceError, WindowError
from pipeline.scene import SceneSpec, open_scene
from pipeline.window import Window

PIXELS = np.random.default_rng(0).integers(0, 256, (23, 37, 3), np.uint8)


def v5_header(content: bytes) -> bytes:
    """Return a BMP with the header of Windows 98 and later (124 bytes), which GDAL refuses."""
    offset = struct.unpack("<I", content[10:14])[0]
    extra = 124 - 40
    head = b"BM" + struct.pack("<IHHI", len(content) + extra, 0, 0, offset + extra)
    return head + struct.pack("<I", 124) + content[18:54] + bytes(extra) + content[54:]


def top_down(content: bytes) -> bytes:
    """Return a BMP whose rows run from top to bottom: a negative height in the header."""
    offset = struct.unpack("<I", content[10:14])[0]
    height = struct.unpack("<i", content[22:26])[0]
    rows = np.frombuffer(content[offset:], np.uint8).reshape(height, -1)[::-1]
    return content[:22] + struct.pack("<i", -height) + content[26:offset] + rows.tobytes()


def written(path, image, change=lambda content: content):
    stream = io.BytesIO()
    image.save(stream, "BMP")
    path.write_bytes(change(stream.getvalue()))
    return SceneSpec(uri=str(path))


@pytest.mark.parametrize("change", [lambda c: c, v5_header, top_down], ids=["plain", "BITMAPV5", "top down"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_window_has_the_files_pixels(tmp_path, mode, change):
    image = Image.fromarray(PIXELS).convert(mode)
    spec = written(tmp_path / "a.bmp", image, change)
    expected = np.asarray(image if mode == "L" else image.convert("RGB"))
    expected = expected[None] if mode == "L" else np.moveaxis(expected, -1, 0)
    with open_scene(spec) as scene:
        window = Window(row_off=3, col_off=5, height=11, width=20)
        tile = scene.read(window)
        np.testing.assert_array_equal(tile.pixels, expected[:, *window.to_slices()])
        np.testing.assert_array_equal(scene.read(scene.info.window).pixels, expected)
        assert tile.valid.all()
        assert (scene.info.driver, scene.info.shape, scene.info.n_bands) == ("BMP", (23, 37), len(expected))
        assert scene.info.random_access


def test_bands_come_in_the_order_asked_for_and_nodata_is_honoured(tmp_path):
    spec = written(tmp_path / "a.bmp", Image.fromarray(PIXELS * (np.arange(37) > 4)[None, :, None].astype(np.uint8)))
    with open_scene(SceneSpec(uri=spec.uri, bands=(3, 1), nodata=0)) as scene:
        tile = scene.read(scene.info.window)
    np.testing.assert_array_equal(tile.pixels[:, :, 5:], np.moveaxis(PIXELS, -1, 0)[[2, 0]][:, :, 5:])
    assert not tile.valid[:, :5].any()
    assert tile.valid[:, 5:].mean() > 0.99


def test_a_window_outside_the_scene_is_refused(tmp_path):
    with (
        open_scene(written(tmp_path / "a.bmp", Image.fromarray(PIXELS))) as scene,
        pytest.raises(WindowError, match="inside the scene"),
    ):
        scene.read(Window(row_off=20, col_off=0, height=4, width=1))


@pytest.mark.parametrize(
    ("image", "change", "words"),
    [
        (Image.fromarray(PIXELS), lambda c: c[:-1], "cut short: its pixels should end at byte"),
        (Image.fromarray(PIXELS).convert("P"), lambda c: c, "a BMP with a palette"),
        (Image.fromarray(PIXELS).convert("1"), lambda c: c, "24 or 32 bits a pixel, are read"),
        (Image.fromarray(PIXELS), lambda c: c[:20], "does not open"),
        (Image.fromarray(PIXELS), lambda _: b"BM" + bytes(60), "does not open"),
    ],
    ids=["truncated", "palette", "one bit", "header cut", "zeros"],
)
def test_what_cannot_be_read_is_refused(tmp_path, image, change, words):
    with pytest.raises(SourceError, match=words):
        open_scene(written(tmp_path / "a.bmp", image, change))


def test_a_band_that_is_not_there_is_refused(tmp_path):
    spec = written(tmp_path / "a.bmp", Image.fromarray(PIXELS))
    with pytest.raises(SourceError, match="it has bands 1 to 3"):
        open_scene(SceneSpec(uri=spec.uri, bands=(4,)))


def test_too_many_pixels_are_refused(tmp_path):
    spec = written(tmp_path / "a.bmp", Image.fromarray(PIXELS))
    with pytest.raises(SourceError, match="at most 100 px"):
        open_scene(SceneSpec(uri=spec.uri, max_pixels=100))
