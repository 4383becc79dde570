"""Windows are drawn by number: the same in every run and process, pixels and labels together, classes in equal turns."""

import numpy as np
import pytest
import torch
from label_scenes import blobs, scene_of

from pipeline.errors import SourceError, SpecError
from workflows.band_statistics import band_statistics
from workflows.split import SplitSpec, split_scenes, whole
from workflows.window_sampler import Augmentation, SamplingSpec, WindowSampler

PLAIN = Augmentation(scale_range=(1.0, 1.0), jitter=0.0, flips=False)
SIZE = 64


def parts_of(*labels: np.ndarray, n_classes: int = 3) -> list:
    return [whole(scene_of(one, name=f"scene {index}"), n_classes=n_classes) for index, one in enumerate(labels)]


def sampler_of(*labels: np.ndarray, **changes: object) -> WindowSampler:
    given = {"window_px": SIZE, "seed": 0, "augmentation": PLAIN, **changes}
    return WindowSampler(parts_of(*labels), **given)  # type: ignore[arg-type]


def shown(pixels: torch.Tensor) -> torch.Tensor:
    """Read the labels off the first band."""
    return (pixels[0] / 50).round().long() - 1


@pytest.mark.parametrize(
    "augmentation",
    [
        PLAIN,
        Augmentation(scale_range=(0.5, 0.5), jitter=0.0),
        Augmentation(scale_range=(2.0, 2.0), jitter=0.0),
        Augmentation(scale_range=(0.7, 1.4), jitter=0.0, rotate_deg=180),
        Augmentation(scale_range=(0.7, 1.4), jitter=0.05, rotate_deg=30, blur=1.0),
    ],
    ids=["plain", "half", "twice", "turned", "all"],
)
def test_image_and_labels_of_a_window_stay_together(augmentation):
    sampler = sampler_of(blobs((250, 270), side=32), augmentation=augmentation)
    same, mirrored = [], []
    for item in range(12):
        pixels, labels = sampler.draw(3, item)
        assert (pixels.shape, labels.shape) == ((2, SIZE, SIZE), (SIZE, SIZE))
        assert (pixels.dtype, labels.dtype) == (torch.float32, torch.int64)
        same.append(float((shown(pixels) == labels).float().mean()))
        mirrored.append(float((shown(pixels).flip(0) == labels).float().mean()))
    assert np.mean(same) > 0.85
    assert np.mean(mirrored) < 0.6


def test_without_a_change_of_size_every_pixel_keeps_its_label():
    sampler = sampler_of(blobs((250, 270)), augmentation=Augmentation(scale_range=(1.0, 1.0), jitter=0.0))
    for item in range(8):
        pixels, labels = sampler.draw(0, item)
        assert torch.equal(shown(pixels), labels)


def test_a_turn_by_a_right_angle_is_exact():
    from workflows.window_sampler import _rotated

    pixels = torch.arange(100.0).reshape(1, 10, 10)
    turned, mask = _rotated(pixels, [pixels[0].long()], np.pi / 2, 10)
    assert torch.equal(mask, turned[0].round().long())
    assert torch.equal(mask, torch.rot90(pixels[0].long(), 1)) or torch.equal(mask, torch.rot90(pixels[0].long(), -1))


def test_a_draw_depends_on_its_number_alone():
    labels = blobs((250, 270)), blobs((90, 300), seed=1)
    augmentation = Augmentation(rotate_deg=20, blur=0.5)
    first, again = sampler_of(*labels, augmentation=augmentation), sampler_of(*labels, augmentation=augmentation)
    drawn = {(step, item): first.draw(step, item) for step in range(3) for item in range(2)}
    torch.rand(5)
    for number in reversed(list(drawn)):
        pixels, ids = again.draw(*number)
        assert torch.equal(pixels, drawn[number][0])
        assert torch.equal(ids, drawn[number][1])
    assert len({pixels.numpy().tobytes() for pixels, _ in drawn.values()}) == 6
    other = sampler_of(*labels, augmentation=augmentation, seed=1)
    assert not torch.equal(other.draw(0, 0)[0], drawn[0, 0][0])


def test_a_batch_is_its_items():
    sampler = sampler_of(blobs((250, 270)))
    pixels, labels = sampler.draw_batch(4, [2, 5])
    assert torch.equal(pixels[1], sampler.draw(4, 5)[0])
    assert torch.equal(labels[0], sampler.draw(4, 2)[1])


def rare_scene() -> np.ndarray:
    labels = np.zeros((600, 600), np.uint8)
    labels[500:503, 40:44] = 1
    labels[10:12, 590:600] = 2
    return labels


def test_classes_take_equal_turns_however_rare_they_are():
    sampler = sampler_of(rare_scene(), sampling=SamplingSpec(class_balance=1.0))
    seen = np.array([[bool((sampler.draw(0, item)[1] == k).any()) for k in range(3)] for item in range(90)])
    assert seen[:, 1].mean() == pytest.approx(1 / 3, abs=0.15)
    assert seen[:, 2].mean() == pytest.approx(1 / 3, abs=0.15)


def test_without_balance_windows_lie_anywhere():
    sampler = sampler_of(rare_scene(), sampling=SamplingSpec(class_balance=0.0))
    seen = [bool((sampler.draw(0, item)[1] > 0).any()) for item in range(60)]
    assert np.mean(seen) < 0.15


def test_the_pixel_that_a_window_is_placed_by_lies_anywhere_in_it():
    labels = np.full((600, 600), 255, np.uint8)
    labels[300, 301] = 0
    sampler = WindowSampler(parts_of(labels, n_classes=1), window_px=SIZE, seed=0, augmentation=PLAIN)
    places = np.array([np.argwhere(sampler.draw(0, item)[1].numpy() == 0)[0] for item in range(60)])
    assert len(places) == 60
    assert (places.min(axis=0) < 10).all()
    assert (places.max(axis=0) > SIZE - 10).all()


@pytest.mark.parametrize(("by_scene", "share"), [("equal", 0.5), ("area", 0.1)])
@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_scenes_are_drawn_alike_or_by_their_labels(by_scene, share, balance):
    small, large = np.zeros((100, 100), np.uint8), np.zeros((300, 300), np.uint8)
    parts = [whole(scene_of(one, name=str(one.shape)), n_classes=1) for one in (small, large)]
    drawn = []
    parts[0].scene.read, read = lambda window: (drawn.append(0), read(window))[1], parts[0].scene.read
    sampler = WindowSampler(
        parts, window_px=32, seed=0, augmentation=PLAIN, sampling=SamplingSpec(class_balance=balance, by_scene=by_scene)
    )
    for item in range(150):
        sampler.draw(0, item)
    assert len(drawn) / 150 == pytest.approx(share, abs=0.1)


def test_every_window_has_a_label_although_few_places_do():
    labels = np.full((900, 900), 255, np.uint8)
    labels[700:703, 100:103] = 2
    sampler = WindowSampler(
        parts_of(labels), window_px=SIZE, seed=0, augmentation=PLAIN, sampling=SamplingSpec(class_balance=0.0)
    )
    assert all(bool((sampler.draw(step, 0)[1] == 2).any()) for step in range(20))


def test_held_out_ground_is_never_shown_with_its_labels():
    scene = scene_of(blobs((330, 450)))
    split = split_scenes(SplitSpec(by="block", block_px=64, validation=0.4), [scene], classes=("a", "b", "c"))
    train, held_out = (
        WindowSampler(parts, window_px=SIZE, seed=0, augmentation=PLAIN) for parts in (split.train, split.validation)
    )
    shares = [
        np.mean([float((sampler.draw(0, item)[1] != 255).float().mean()) for item in range(40)]) for sampler in (train, held_out)
    ]
    assert 0.4 < shares[0] < 0.9
    assert 0.2 < shares[1] < 0.8


def test_no_scene_is_read_whole():
    scene = scene_of(blobs((2500, 2700)))
    read: list[int] = []

    def recording(reader):
        return lambda window: (read.append(window.n_pixels), reader(window))[1]

    scene._image.read, scene._labels.read = recording(scene._image.read), recording(scene._labels.read)
    part = whole(scene, n_classes=3)
    band_statistics([part])
    assert max(read) <= 1024**2
    read.clear()
    sampler = WindowSampler([part], window_px=SIZE, seed=0, augmentation=Augmentation(scale_range=(0.5, 2.0), rotate_deg=45))
    for item in range(20):
        sampler.draw(0, item)
    assert max(read) <= (1.5 * 2 * SIZE) ** 2


def test_a_scene_smaller_than_the_window_is_ignored_around():
    pixels, labels = sampler_of(blobs((20, 30))).draw(0, 0)
    assert int((labels != 255).sum()) == 20 * 30
    assert bool(torch.isfinite(pixels).all())


@pytest.mark.parametrize("rotate_deg", [0.0, 90.0])
def test_pixels_without_data_are_filled_and_have_no_label(rotate_deg):
    valid = np.random.default_rng(0).random((200, 200)) > 0.3
    parts = [whole(scene_of(blobs((200, 200)), valid=valid), n_classes=3)]
    augmentation = Augmentation(scale_range=(0.8, 1.2), jitter=0.3, rotate_deg=rotate_deg)
    sampler = WindowSampler(parts, window_px=SIZE, seed=0, augmentation=augmentation, fill=(77.0, 33.0))
    pixels, labels = sampler.draw(0, 0)
    hidden = labels == 255
    assert 0.1 < float(hidden.float().mean()) < 0.5
    assert torch.equal(pixels[:, hidden], torch.tensor([77.0, 33.0])[:, None].expand(2, int(hidden.sum())))


def test_all_eight_symmetries_are_drawn():
    sampler = sampler_of(blobs((64, 64), side=8), augmentation=Augmentation(scale_range=(1.0, 1.0), jitter=0.0))
    assert len({sampler.draw(0, item)[1].numpy().tobytes() for item in range(100)}) == 8


def test_colours_vary_within_their_bounds():
    sampler = sampler_of(np.ones((100, 100), np.uint8), augmentation=Augmentation(scale_range=(1, 1), jitter=0.2, flips=False))
    gains = np.array([float(sampler.draw(0, item)[0][0, 0, 0]) / 100 for item in range(100)])
    assert gains.min() > 0.8 * 0.95
    assert gains.max() < 1.2 * 1.05
    assert gains.std() > 0.05


def test_blurred_windows_are_smooth_and_keep_their_mean():
    labels = (np.indices((100, 100)).sum(axis=0) % 2).astype(np.uint8)
    sharp = sampler_of(labels).draw(0, 0)[0]
    blurred = sampler_of(labels, augmentation=Augmentation(scale_range=(1, 1), jitter=0.0, flips=False, blur=1.0)).draw(0, 0)[0]
    assert float(blurred[0].std()) < 0.7 * float(sharp[0].std())
    assert float(blurred.mean()) == pytest.approx(float(sharp.mean()), rel=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"scale_range": (2.0, 1.0)},
        {"scale_range": (0.0, 1.0)},
        {"jitter": 1.0},
        {"rotate_deg": 181},
        {"rotate_deg": -1},
        {"blur": 1.1},
    ],
)
def test_an_augmentation_that_makes_no_sense_is_refused(change):
    with pytest.raises(SpecError, match=f"augmentation.{next(iter(change))} is"):
        Augmentation(**change)


@pytest.mark.parametrize("change", [{"class_balance": -0.1}, {"class_balance": 1.1}, {"by_scene": "size"}])
def test_a_sampling_that_makes_no_sense_is_refused(change):
    with pytest.raises(SpecError, match=f"sampling.{next(iter(change))} is"):
        SamplingSpec(**change)


# Statistics


def test_each_scene_counts_once_whatever_its_size():
    valid = np.random.default_rng(0).random((1100, 130)) > 0.3
    small, large = blobs((60, 80), seed=1), blobs((1100, 130), seed=2)
    parts = [whole(scene_of(small), n_classes=3), whole(scene_of(large, valid=valid), n_classes=3)]
    mean, deviation = band_statistics(parts)
    values = [50.0 * (small.ravel() + 1), 50.0 * (large[valid] + 1)]
    expected = np.mean([one.mean() for one in values])
    square = np.mean([(one**2).mean() for one in values])
    assert mean == pytest.approx((expected, expected * 0.4))
    assert deviation[0] == pytest.approx(np.sqrt(square - expected**2))


def test_held_out_ground_does_not_count():
    labels = blobs((330, 450))
    split = split_scenes(SplitSpec(by="block", block_px=64, validation=0.4), [scene_of(labels)], classes=("a", "b", "c"))
    assert split.validation[0].blocks is not None
    held_out = split.validation[0].blocks.repeat(64, axis=0).repeat(64, axis=1)[:330, :450]
    assert band_statistics(split.train)[0][0] == pytest.approx(50.0 * (labels[~held_out] + 1).mean())


def test_ground_without_data_has_no_statistics():
    part = whole(scene_of(np.zeros((9, 9), np.uint8), name="dark", valid=np.eye(9, dtype=bool)), n_classes=1)
    nowhere = type(part)(scene=part.scene, index=part.index, blocks=np.zeros((1, 1), bool), block_px=64)
    with pytest.raises(SourceError, match="dark has no pixel with data"):
        band_statistics([nowhere])
