"""Do the benchmarks measure what they say? Only the parts that take no time; the benchmarks themselves are run on demand."""

import signal
import sys
from itertools import pairwise

import compose_scene
import numpy as np
import pytest
import rasterio
from compose_scene import compose_mosaic
from evaluate_memory import cut, make, measure
from gigapixel import count_lines, execution
from peer_jobs import SIDE, TILES, normalised, offsets, refine, refine_tiles, tiles
from PIL import Image
from watch import watch

from pipeline.crf import pydensecrf
from pipeline.crf.energy import CrfSpec
from pipeline.network.model_file import read_model_spec
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.normalise import normalise
from pipeline.scene import Tile
from pipeline.stretch import Stretch
from pipeline.window import Window
from workflows.crf_request import CrfRequest, tilings

HOLD_64_MIB = "import time; held = bytearray(64 << 20); held[::4096] = b'x' * len(held[::4096]); time.sleep({})"


def pixels_of(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (3, *shape), np.uint8)


def test_a_watched_command_gives_its_output_its_code_and_its_peak():
    done = watch([sys.executable, "-c", HOLD_64_MIB.format(0.3) + "; print('done')"], poll_s=0.05)
    assert (done.code, done.stdout) == (0, "done\n")
    assert 64 << 20 < done.coordinator_peak_bytes < 256 << 20
    assert done.peak_bytes > 64 << 20
    assert done.worker_peak_bytes == 0
    assert 0.3 < done.seconds < 60


def test_a_watched_command_is_killed_with_its_children():
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD_64_MIB.format(60)!r}])"
    done = watch([sys.executable, "-c", child], poll_s=0.05, stop_when=lambda look: look.total_bytes > 64 << 20)
    assert done.code == -signal.SIGKILL
    assert done.seconds < 50  # the child would sleep for 60 s


def test_a_mosaic_is_laid_out_of_pieces_and_is_the_same_for_the_same_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(compose_scene, "PIECE_PX", 16)
    for tile in ("tile1", "tile2"):
        (tmp_path / tile / "images").mkdir(parents=True)
        for part in range(9):
            pixels = pixels_of((20 + part % 2, 22), seed=part)  # parts differ by a pixel
            Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / tile / "images" / f"image_part_{part}.jpg")
    read = []
    for name, seed in (("a.tif", 0), ("b.tif", 0), ("c.tif", 1)):
        compose_mosaic(tmp_path, tmp_path / name, height=53, width=40, seed=seed)
        with rasterio.open(tmp_path / name) as scene:
            read.append(scene.read())
    assert read[0].shape == (3, 53, 40)
    assert (read[0] == read[1]).all()
    assert (read[0] != read[2]).any()
    assert read[0].min(axis=0).std() > 0


def test_a_folder_without_tiles_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no folders tile"):
        compose_mosaic(tmp_path, tmp_path / "a.tif", height=8, width=8)


@pytest.mark.parametrize("size", [SIDE, 1500, 1792, 4096])
def test_the_windows_of_the_peers_cover_a_side_and_stay_within_it(size):
    starts = offsets(size)
    assert starts[0] == 0
    assert starts[-1] + SIDE == size
    assert all(0 < after - before <= 768 for before, after in pairwise(starts))


def test_the_peers_see_what_the_pipeline_sees():
    pixels, model = pixels_of((12, 9)), read_model_spec(resolve_model(DEFAULT_MODEL))
    window = Window.of_shape((12, 9))
    tile = Tile(window=window, pixels=pixels, valid=np.ones((12, 9), bool))
    ours = normalise(tile, window, stretch=Stretch.identity(3), model=model)
    np.testing.assert_allclose(normalised(pixels)[0].numpy(), ours, atol=1e-6)


def test_the_peers_minimise_the_default_energy():
    shape = (31, 40)
    pixels, rng = pixels_of(shape) // 16, np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(5), shape).transpose(2, 0, 1).astype(np.float32)
    ours = pydensecrf.refine(probabilities, pixels.astype(np.float32), np.ones(shape, bool), CrfSpec(backend="pydensecrf"))
    assert (refine(probabilities, pixels) == ours.argmax(0)).mean() > 0.999
    assert (ours.argmax(0) != probabilities.argmax(0)).any()


def test_the_tiles_of_the_peers_with_a_halo_are_ours():
    tile, halo = TILES["halo"]
    assert halo == CrfSpec().halo_px
    assert tilings(CrfRequest(), CrfSpec())[0].tile_px == tile


def test_crf_tiles_of_the_peers_with_enough_halo_are_the_whole(tmp_path):
    shape = (31, 40)
    pixels, rng = pixels_of(shape) // 16, np.random.default_rng(2)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=3, dtype="uint8", height=31, width=40) as scene:
        scene.write(pixels)
    probabilities = rng.dirichlet(np.ones(5), shape).transpose(2, 0, 1).astype(np.float32)
    assert len(list(tiles(*shape, 16))) == 6
    whole = refine(probabilities, pixels)
    assert (refine_tiles(probabilities, tmp_path / "a.tif", tile=16, halo=40) == whole).all()
    assert (refine_tiles(probabilities, tmp_path / "a.tif", tile=16, halo=0) != whole).any()


def test_a_resume_is_given_only_the_options_that_it_knows():
    given = ["--crf", "--block", "1024", "--workers", "1", "--strict"]
    assert execution(given) == ["--workers", "1", "--strict"]


def test_lines_of_a_journal_that_is_not_there_yet_are_none(tmp_path):
    assert count_lines(tmp_path / "journal.jsonl") == 0
    (tmp_path / "journal.jsonl").write_text("{}\n{}\ntorn")
    assert count_lines(tmp_path / "journal.jsonl") == 2


def test_the_scene_that_is_made_for_evaluate_is_wrong_in_a_fifth_and_its_part_is_a_sixteenth(tmp_path):
    predicted, labels = make(tmp_path, 1100)
    found = measure(predicted, labels)
    assert (found.n_pixels, found.n_counted) == (1100**2, 1100**2)
    assert found.mean_iou == pytest.approx(0.8 / 1.2, abs=0.01)
    assert found.peak_bytes > 100 << 20
    with rasterio.open(cut(labels, tmp_path / "part.tif")) as part, rasterio.open(labels) as whole:
        assert (part.read(1) == whole.read(1)[412:687, 412:687]).all()
