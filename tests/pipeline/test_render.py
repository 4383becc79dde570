"""The picture: its size, colours, legend and scale bar."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import SpecError
from pipeline.network.spec import ClassSpec
from pipeline.render import Picture, choose_factor, hatch, legend_entries, overlay, render, scale_bar, share

CLASSES = (ClassSpec(name="Water", color="#0000ff"), ClassSpec(name="Road", color="#ff0000"))


def make_picture(shape=(101, 203), *, background: bool = True, **changes) -> Picture:
    labels = np.zeros(shape, np.uint8)
    labels[:, shape[1] // 2 :] = 1
    counts = np.zeros(256, np.int64)
    counts[:2] = 30, 10
    settings = {
        "labels": labels,
        "background": np.full((*shape, 4), 255, np.uint8) if background else None,
        "classes": CLASSES,
        "counts": counts,
        "unit_px": 0.5,
        "unit": "m",
        "title": "out.zarr",
        "subtitle": "203 x 101 px",
    }
    return Picture(**(settings | changes))


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("shape", [(101, 203), (203, 101), (900, 800), (1500, 60), (40, 1599), (1, 1)], ids=str)
@pytest.mark.parametrize("max_side_px", [400, 1000])
def test_the_picture_never_exceeds_its_size_and_uses_most_of_it(shape, background, max_side_px):
    image = render(make_picture(shape, background=background), max_side_px=max_side_px)
    assert image.mode == "RGB"
    assert max(image.size) <= max_side_px
    if min(shape) > 100:
        assert max(image.size) > 0.6 * max_side_px


def test_a_long_legend_does_not_exceed_the_size_either():
    classes = tuple(ClassSpec(name=f"a class with a rather long name, number {i}", color="#123456") for i in range(24))
    image = render(make_picture(classes=classes), max_side_px=400)
    assert max(image.size) <= 400


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("shape", [(101, 203), (4001, 9_999), (12_345, 678)], ids=str)
def test_what_is_decimated_is_never_smaller_than_its_panel_and_less_than_twice_as_large(shape, background):
    n_panels = 2 if background else 1
    factor = choose_factor(shape, max_side_px=1600, n_panels=n_panels)
    cells = -(-shape[0] // factor), -(-shape[1] // factor)
    assert max(cells) < 2 * 1600
    assert factor == 1 or max(cells) >= 500


def test_without_a_scene_the_classes_have_their_own_colours():
    painted = overlay(make_picture(background=False))
    assert (painted[:, :101] == (0, 0, 255)).all()
    assert (painted[:, 101:] == (255, 0, 0)).all()


def test_the_scene_shines_through_but_for_the_outlines():
    painted = overlay(make_picture(opacity=0.5))
    assert (painted[:, :100] == (128, 128, 255)).all()
    assert (painted[:, 101] == (255, 51, 51)).all()
    assert (painted[:, 102:] == (255, 128, 128)).all()


@pytest.mark.parametrize("background", [True, False])
def test_nodata_is_hatched(background):
    labels = np.full((20, 30), 255, np.uint8)
    picture = make_picture((20, 30), background=background, labels=labels)
    np.testing.assert_array_equal(overlay(picture), hatch((20, 30)))
    assert len(np.unique(hatch((20, 30)).reshape(-1, 3), axis=0)) == 2


def test_pixels_of_both_panels_are_in_the_picture():
    image = np.asarray(render(make_picture(background=False), max_side_px=800))
    assert (image == (0, 0, 255)).all(axis=-1).sum() > 10_000
    assert (image == (255, 0, 0)).all(axis=-1).sum() > 10_000


def test_the_legend_gives_the_share_of_each_class_among_labelled_pixels():
    counts = np.zeros(256, np.int64)
    counts[[0, 1, 255]] = 30, 10, 60
    entries = legend_entries(make_picture(counts=counts))
    assert [one.text for one in entries] == ["Water  75.0 %", "Road  25.0 %", "no data  60.0 % of the scene"]
    assert [one.color for one in entries] == [(0, 0, 255), (255, 0, 0), None]


def test_of_very_many_classes_only_the_most_frequent_are_listed():
    classes = tuple(ClassSpec(name=f"c{i}", color="#123456") for i in range(200))
    counts = np.zeros(256, np.int64)
    counts[[7, 150, 3]] = 10, 80, 10
    texts = [one.text for one in legend_entries(make_picture(classes=classes, counts=counts))]
    assert texts == ["c150  80.0 %", "c3  10.0 %", "c7  10.0 %"]


@pytest.mark.parametrize(
    ("unit_px", "unit", "longest_px", "expected"),
    [
        pytest.param(1.0, "m", 100, (100, "100 m"), id="exactly a power of ten"),
        pytest.param(0.3, "m", 100, (67, "20 m"), id="two"),
        pytest.param(0.007, "m", 100, (71, "0.5 m"), id="below a metre"),
        pytest.param(30.0, "m", 100, (67, "2 km"), id="kilometres"),
        pytest.param(30.0, "px", 100, (67, "2000 px"), id="pixels stay pixels"),
    ],
)
def test_the_scale_bar_is_round_and_fits(unit_px, unit, longest_px, expected):
    assert scale_bar(unit_px, unit, longest_px) == expected


def test_a_tiny_share_is_not_called_zero():
    assert [share(0, 10), share(1, 10**6), share(10, 10)] == ["0 %", "< 0.1 %", "100.0 %"]


def test_an_opacity_out_of_range_is_refused():
    with pytest.raises(SpecError, match="opacity"):
        make_picture(opacity=1.5)
