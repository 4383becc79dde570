"""What is held out is whole ground: never seen with its labels in training, and the same in every run."""

import json

import numpy as np
import pytest
from label_scenes import blobs, scene_of

from pipeline.errors import SourceError, SpecError
from pipeline.window import Window
from workflows.split import ScenePart, SplitSpec, split_scenes, whole

CLASSES = ("a", "b", "c")
SHAPE = (330, 450)
BLOCKS = SplitSpec(by="block", block_px=64, validation=0.25)


def scenes_of(count: int = 3) -> list:
    return [scene_of(blobs((SHAPE[0] + 10 * i, SHAPE[1]), seed=i), name=f"scene {i}") for i in range(count)]


def labels_of(part: ScenePart) -> np.ndarray:
    return part.read_labels(Window.of_shape(part.shape))


def test_blocks_of_ground_have_labels_in_one_part_only():
    scenes = scenes_of()
    split = split_scenes(BLOCKS, scenes, classes=CLASSES)
    n_blocks = 0
    for scene, train, validation in zip(scenes, split.train, split.validation, strict=True):
        ours, held_out = labels_of(train), labels_of(validation)
        assert not ((ours != 255) & (held_out != 255)).any()
        np.testing.assert_array_equal(np.minimum(ours, held_out), scene.read_labels(Window.of_shape(scene.shape)))
        for row in range(0, scene.shape[0], 64):
            for col in range(0, scene.shape[1], 64):
                assert len(np.unique(held_out[row : row + 64, col : col + 64] == 255)) == 1, "a block is whole"
        assert validation.blocks is not None
        n_blocks += int(validation.blocks.sum())
        assert train.totals.tolist() == [int((ours == k).sum()) for k in range(3)]
        assert validation.totals.tolist() == [int((held_out == k).sum()) for k in range(3)]
    assert n_blocks == round(0.25 * 3 * 6 * 8), "exactly the share of all blocks"


def test_a_window_of_a_part_shows_all_pixels_and_the_labels_of_that_part():
    scene = scenes_of(1)[0]
    split = split_scenes(BLOCKS, [scene], classes=CLASSES)
    window = Window(row_off=-9, col_off=40, height=200, width=500)
    found, seen = split.validation[0].read(window), scene.read(window)
    np.testing.assert_array_equal(found.pixels, seen.pixels)
    inside = window.clip(scene.shape)
    assert inside is not None
    expected = np.full(window.shape, 255, np.uint8)
    expected[inside.relative_to(window).to_slices()] = labels_of(split.validation[0])[inside.to_slices()]
    np.testing.assert_array_equal(found.labels, expected)
    assert (expected != 255).any()


def test_the_same_seed_gives_the_same_split_and_another_one_another():
    def drawn(spec: SplitSpec) -> list:
        return [part.blocks.tolist() for part in split_scenes(spec, scenes_of(), classes=CLASSES).validation]

    assert drawn(BLOCKS) == drawn(BLOCKS)
    assert drawn(BLOCKS) != drawn(SplitSpec(by="block", block_px=64, validation=0.25, seed=1))


def test_only_blocks_with_labels_are_shared_out():
    labels = np.full(SHAPE, 255, np.uint8)
    labels[:128, :128] = blobs((128, 128), n_classes=2)
    split = split_scenes(BLOCKS, [scene_of(labels)], classes=CLASSES[:2])
    assert [int(part.blocks.sum()) for part in split.validation if part.blocks is not None] == [1]
    assert [int(part.totals.sum()) for part in (*split.train, *split.validation)] == [3 * 64**2, 64**2]


def test_whole_scenes_are_held_out():
    scenes = scenes_of(5)
    split = split_scenes(SplitSpec(by="scene", validation=0.4), scenes, classes=CLASSES)
    names = [part.name for part in split.train], [part.name for part in split.validation]
    assert (len(names[0]), len(names[1])) == (3, 2)
    assert sorted(names[0] + names[1]) == [scene.name for scene in scenes]
    assert all(part.blocks is None for part in (*split.train, *split.validation))


def test_a_split_that_leaves_a_class_out_is_drawn_again():
    rare = [scene_of(np.full((64, 64), 0, np.uint8), name=f"plain {i}") for i in range(6)]
    mixed = [scene_of(blobs((64, 64), n_classes=2), name=f"mixed {i}") for i in range(2)]
    for seed in range(8):
        split = split_scenes(SplitSpec(by="scene", validation=0.2, seed=seed), [*rare, *mixed], classes=CLASSES[:2])
        for parts in (split.train, split.validation):
            assert any(part.name.startswith("mixed") for part in parts)


def test_entries_are_taken_as_they_are():
    scenes = scenes_of()
    split = split_scenes(SplitSpec(), scenes[:2], scenes[2:], classes=CLASSES)
    assert [part.scene for part in split.train] == scenes[:2]
    assert [part.scene for part in split.validation] == scenes[2:]
    assert split_scenes(SplitSpec(), scenes, classes=CLASSES).validation == ()


def test_what_is_in_each_part_is_told():
    told = split_scenes(BLOCKS, scenes_of(2), classes=CLASSES).to_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["validation"]["scenes"] == ["scene 0", "scene 1"]
    assert sum(told["validation"]["blocks"].values()) == round(0.25 * 2 * 6 * 8)
    assert sum(sum(told[part]["pixels"].values()) for part in told) == 330 * 450 + 340 * 450


def test_the_squares_with_labels_cover_them_all():
    labels = np.full(SHAPE, 255, np.uint8)
    labels[100:170, 300:450] = 0
    part = whole(scene_of(labels), n_classes=1)
    windows = part.labelled_windows(100)
    assert [(window.row_off, window.col_off, window.width) for window in windows] == [
        (row, col, 50 if col == 400 else 100) for row in (0, 100) for col in (200, 300, 400)
    ], "cells of 64 px decide"
    assert sum(int((part.read_labels(window) == 0).sum()) for window in windows) == 70 * 150


# What cannot be split


def test_a_scene_without_a_label_is_named():
    with pytest.raises(SourceError, match="empty has no pixel with a label"):
        split_scenes(SplitSpec(), [*scenes_of(1), scene_of(np.full((9, 9), 255, np.uint8), name="empty")], classes=CLASSES)


@pytest.mark.parametrize(
    ("spec", "size", "words"),
    [
        (SplitSpec(by="scene"), SHAPE, 'split.by = "scene" needs two scenes'),
        (
            SplitSpec(by="block", block_px=512),
            SHAPE,
            "needs two blocks of 512 px with labels.* and there is 1; make split.block_px smaller",
        ),
    ],
)
def test_an_empty_part_is_refused(spec, size, words):
    with pytest.raises(SourceError, match=words):
        split_scenes(spec, [scene_of(blobs(size))], classes=CLASSES)


@pytest.mark.parametrize(
    ("spec", "train", "validation", "words"),
    [
        (SplitSpec(), 2, 0, "no pixel of c is in the train part .scene.*add a scene that shows it"),
        (SplitSpec(), 3, 1, "no pixel of b, c is in the validation part .scene"),
        (BLOCKS, 2, 0, "no pixel of c is in the train part .*change .split.: by = 'block', seed 0, share 0.25, blocks of 64 px"),
    ],
)
def test_a_class_without_a_pixel_is_named(spec, train, validation, words):
    held_out = [scene_of(blobs((90, 90), n_classes=validation), name="scene v")] if validation else []
    with pytest.raises(SourceError, match=words):
        split_scenes(spec, [scene_of(blobs(SHAPE, n_classes=train), name="scene t")], held_out, classes=CLASSES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"by": "window"}, "split.by is 'window'; choose one of entries, scene, block"),
        ({"block_px": 100}, "split.block_px is 100; give a multiple of 64"),
        ({"block_px": 0}, "split.block_px is 0"),
        ({"validation": 0.0}, "split.validation is 0.0"),
        ({"validation": 1}, "split.validation is 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(SpecError, match=words):
        SplitSpec(**changes)
