"""The names that are computed are those that zarr gives."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.chunk_files import first_pixel, owned_files
from pipeline.georef import Georef
from pipeline.network.spec import ClassSpec
from pipeline.store import StoreLayout, create_store, write_block
from pipeline.window import Window

SHAPE = (101, 203)
WINDOWS = [
    pytest.param(Window(row_off=0, col_off=64, height=64, width=64), id="inside"),
    pytest.param(Window(row_off=64, col_off=192, height=37, width=11), id="ragged corner"),
    pytest.param(Window.of_shape(SHAPE), id="all"),
]


def layout_of(*, shard=None, probabilities=True) -> StoreLayout:
    classes = tuple(ClassSpec(name=f"class {i}", color="#000000") for i in range(3))
    given = {"height": SHAPE[0], "width": SHAPE[1], "chunk": 32, "classes": classes, "georef": Georef()}
    return StoreLayout(shard=shard, probabilities=probabilities, **given)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shard", [None, 64], ids=["chunks", "shards"])
def test_a_block_owns_the_files_that_it_writes(tmp_path, shard, window):
    layout = layout_of(shard=shard)
    create_store(tmp_path / "out.zarr", layout)
    arrays = {name: np.zeros(window.shape, np.uint8) for name in ("labels", "confidence")}
    arrays["probabilities"] = np.zeros((3, *window.shape), np.uint8)
    written = [receipt.key for receipt in write_block(tmp_path / "out.zarr", window, arrays)]
    assert owned_files(layout, window) == written
    for key in written:
        row, col = first_pixel(layout, key)
        assert window.row_off <= row < window.row_end
        assert window.col_off <= col < window.col_end


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("0/labels/c/4/0", id="below the scene"),
        pytest.param("0/labels/c/0/7", id="right of the scene"),
        pytest.param("0/probabilities/c/3/0/0", id="no such class"),
        pytest.param("0/probabilities/c/0/0", id="class missing"),
        pytest.param("0/labels/c/0/0/0", id="class too much"),
        pytest.param("0/labels/c/00/0", id="leading zero"),
        pytest.param("0/labels/c/-1/0", id="negative"),
        pytest.param("0/labels/c/٣/0", id="digits that zarr does not use"),
        pytest.param("1/labels/c/0/0", id="another level"),
        pytest.param("0/classes/c/0/0", id="another array"),
        pytest.param("0/labels/c/0/0\n", id="line break"),
        pytest.param("0/labels/../labels/c/0/0", id="detour"),
        pytest.param("", id="nothing"),
    ],
)
def test_other_names_are_no_block_s(key):
    assert first_pixel(layout_of(), key) is None


def test_without_probabilities_nobody_owns_any():
    assert first_pixel(layout_of(probabilities=False), "0/probabilities/c/0/0/0") is None
