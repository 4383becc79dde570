"""One block after another against a naive loop over the whole scene, and the same bytes however the scene is cut."""

import dataclasses
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from factories import MemoryScene, lively_network, texture, tiny_model_spec

from pipeline.crf.backends import backend
from pipeline.crf.energy import CrfSpec
from pipeline.engine.protocol import EngineSpec
from pipeline.engine.torch_engine import TorchEngine
from pipeline.grid import Blocks
from pipeline.locate import locate, network_lattice
from pipeline.network.multiscale import MultiScale
from pipeline.network.receptive_field import margin_px
from pipeline.network.spec import MultiScaleSpec
from pipeline.scene import SceneSpec, Tile
from pipeline.seen_windows import SeenWindows
from pipeline.segment import predict, refine, segment_block
from pipeline.spec import GridSpec, OutputSpec, SegmentSpec
from pipeline.stretch import Stretch
from pipeline.window import Window
from pipeline.workplace import Workplace

SHAPE = (150, 203)
CRF = CrfSpec(theta_alpha=4.0, theta_beta=12.0, theta_gamma=1.5, w_appearance=3.0, w_smoothness=2.0, n_steps=3, tile_px=40)
STRETCH = Stretch(low=(10.0, 0.0, 5.0), high=(240.0, 255.0, 230.0))


class Spy:
    """An engine that writes down the shapes of what it is given."""

    name, device = "spy", "cpu"

    def __init__(self, engine):
        self.engine, self.cells, self.seen = engine, engine.cells, []

    def scores(self, windows):
        return self.engine.scores(self._noted(window) for window in windows)

    def _noted(self, window):
        def load():
            pixels = window()
            self.seen.append(pixels.shape)
            return pixels

        return load


def scene_of(shape=SHAPE, *, holes=(), seed=3):
    valid = np.ones(shape, bool)
    for hole in holes:
        valid[hole] = False
    return MemoryScene(texture((3, *shape), seed=seed), valid)


with_and_without_pooling = pytest.mark.parametrize("model", ["off", "window"], indirect=True)


@pytest.fixture(scope="module")
def model(request):
    return tiny_model_spec(n_classes=4, image_pooling=getattr(request, "param", "off"))


@pytest.fixture(scope="module")
def network(model):
    return lively_network(model.network, seed=5)


@pytest.fixture(scope="module")
def engine(network):
    return TorchEngine(MultiScale(network, MultiScaleSpec()), EngineSpec(device="cpu"))


def spec_of(*, block=64, overlap=16, window=64, blend="taper", crf=None, probabilities=True):
    return SegmentSpec(
        scene=SceneSpec(uri="in memory", bands=(1, 2, 3)),
        model_path="in memory",
        model_sha256="0" * 64,
        stretch=STRETCH,
        grid=GridSpec(window_px=window, overlap_px=overlap, blend=blend, block_px=block),
        crf=crf,
        output=OutputSpec(chunk_px=32, probabilities=probabilities),
    )


def segment(scene, spec, *, model, engine):
    """Return labels, confidence and probabilities of the whole scene, one block after another, and the blocks without data."""
    shape = scene.info.shape
    labels, confidence = np.full(shape, 77, np.uint8), np.full(shape, 77, np.uint8)
    probabilities, empty = np.full((len(model.classes), *shape), 77, np.uint8), []
    blocks = Blocks(shape=shape, block_px=spec.grid.block_px)
    for index in blocks:
        at = blocks.window(index).to_slices()
        result = segment_block(index, scene=scene, engine=engine, model=model, spec=spec)
        if result is None:
            empty.append(index)
            labels[at], confidence[at], probabilities[:, *at] = 255, 0, 0
        else:
            labels[at], confidence[at], probabilities[:, *at] = result.labels, result.confidence, result.probabilities
    return SimpleNamespace(labels=labels, confidence=confidence, probabilities=probabilities, empty=empty)


def oracle(scene, *, network, model, window, overlap):
    """Return (classes, height, width) float64 probabilities of the whole scene, by the plainest loop there is."""
    height, width = scene.info.shape
    step = window - overlap
    n_rows = next(n for n in range(1, 99) if (n - 1) * step + window >= height)
    n_cols = next(n for n in range(1, 99) if (n - 1) * step + window >= width)
    extra = ((0, (n_rows - 1) * step + window - height), (0, (n_cols - 1) * step + window - width))
    pixels = np.stack([np.pad(band, extra, mode="reflect") for band in scene.pixels]).astype(np.float64)
    valid = np.pad(scene.valid, extra, mode="reflect")
    for band in range(3):
        low, high = STRETCH.low[band], STRETCH.high[band]
        pixels[band] = (np.clip((pixels[band] - low) / (high - low) * 255, 0, 255) - model.mean[band]) / model.std[band]
    pixels[:, ~valid] = 0
    total, weights = np.zeros((len(model.classes), *valid.shape)), np.zeros(valid.shape)
    for top in range(0, n_rows * step, step):
        for left in range(0, n_cols * step, step):
            at = slice(top, top + window), slice(left, left + window)
            with torch.inference_mode():
                logits = network(torch.from_numpy(pixels[:, *at][None].astype(np.float32)))[0].double()
            chances = torch.softmax(logits, dim=0).numpy()
            to_edge = np.minimum(np.arange(window) + 0.5, window - 0.5 - np.arange(window))
            ramp = np.clip(to_edge / overlap, None, 1)
            total[:, *at] += chances * np.outer(ramp, ramp)
            weights[at] += np.outer(ramp, ramp)
    return (total / weights)[:, :height, :width]


def assert_same_labels(found, expected, valid, *, tolerance=1e-4):
    """Labels are equal except on ties, confidence within one step, probabilities within one step."""
    first, second = np.sort(expected, axis=0)[[-1, -2]]
    differs = (found.labels != expected.argmax(axis=0)) & (first - second > tolerance)
    assert not (differs & valid).any()
    assert (found.labels[~valid] == 255).all()
    assert (found.confidence[~valid] == 0).all()
    assert np.abs(found.confidence - first * 255)[valid].max() < 1


HOLES = [np.s_[20:60, 30:75], np.s_[100:, 150:], np.s_[0, 0], np.s_[64:128, 64:128]]


@with_and_without_pooling
@pytest.mark.parametrize("overlap", [16, 32])
@pytest.mark.parametrize("holes", [pytest.param([], id="full"), pytest.param(HOLES, id="with holes")])
def test_the_blocks_together_are_what_a_naive_loop_over_the_scene_gives(model, network, engine, overlap, holes):
    scene = scene_of(holes=holes)
    expected = oracle(scene, network=network, model=model, window=64, overlap=overlap)
    assert len(np.unique(expected.argmax(axis=0))) >= 3, "the scene must have something to tell apart"
    found = segment(scene, spec_of(overlap=overlap, block=96), model=model, engine=engine)
    assert_same_labels(found, expected, scene.valid)
    assert np.abs(found.probabilities - expected * 255)[:, scene.valid].max() < 1
    assert not found.probabilities[:, ~scene.valid].any()


@pytest.mark.parametrize("name", ["cpu", "torch", "pydensecrf"])
def test_the_crf_sees_global_tiles_with_their_halo(model, network, engine, name):
    if name == "pydensecrf":
        pytest.importorskip("pydensecrf")
    crf = dataclasses.replace(CRF, backend=name)
    scene = scene_of(holes=HOLES[:2])
    blended = oracle(scene, network=network, model=model, window=64, overlap=16).astype(np.float32)
    guide = STRETCH.apply(scene.pixels)
    expected, halo = np.zeros_like(blended), crf.halo_px
    for top in range(0, SHAPE[0], CRF.tile_px):
        for left in range(0, SHAPE[1], CRF.tile_px):
            rows = slice(max(top - halo, 0), min(top + CRF.tile_px + halo, SHAPE[0]))
            cols = slice(max(left - halo, 0), min(left + CRF.tile_px + halo, SHAPE[1]))
            tile = (blended[:, rows, cols], guide[:, rows, cols], scene.valid[rows, cols], crf)
            refined = backend(name).refine(*tile, offset_px=(rows.start, cols.start))
            core = refined[:, top - rows.start :, left - cols.start :][:, : CRF.tile_px, : CRF.tile_px]
            expected[:, top : top + core.shape[1], left : left + core.shape[2]] = core
    found = segment(scene, spec_of(block=96, crf=crf), model=model, engine=engine)
    assert (expected.argmax(axis=0) != blended.argmax(axis=0))[scene.valid].mean() > 0.005, "the CRF must have an effect"
    assert_same_labels(found, expected, scene.valid, tolerance=1e-3)
    assert np.abs(found.probabilities - blended * 255)[:, scene.valid].max() < 1, "the probabilities are those before the CRF"


@with_and_without_pooling
@pytest.mark.parametrize("crf", [pytest.param(None, id="no CRF"), pytest.param(CRF, id="CRF")])
def test_every_block_size_gives_the_same_bytes(model, engine, crf):
    scene = scene_of(holes=HOLES)
    whole = segment(scene, spec_of(block=256, crf=crf), model=model, engine=engine)
    assert not whole.empty
    for block in (32, 64, 96):
        cut = segment(scene, spec_of(block=block, crf=crf), model=model, engine=engine)
        assert cut.labels.tobytes() == whole.labels.tobytes()
        assert cut.confidence.tobytes() == whole.confidence.tobytes()
        assert cut.probabilities.tobytes() == whole.probabilities.tobytes()
        assert (len(cut.empty) > 0) == (block < 96), "a hole of 64 x 64 px at (64, 64) holds whole blocks of up to 64 px"


def test_the_order_of_blocks_does_not_matter(model, engine):
    scene, spec = scene_of(), spec_of(block=64, crf=CRF)
    indices = list(Blocks(shape=SHAPE, block_px=64))
    forth = {index: segment_block(index, scene=scene, engine=engine, model=model, spec=spec) for index in indices}
    for index in reversed(indices[::3]):
        again = segment_block(index, scene=scene, engine=engine, model=model, spec=spec)
        assert again.labels.tobytes() == forth[index].labels.tobytes()
        assert again.confidence.tobytes() == forth[index].confidence.tobytes()


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((40, 51), id="smaller than a window"),
        pytest.param((1, 1), id="one pixel"),
        pytest.param((1, 90), id="one row"),
        pytest.param((130, 16), id="a strip"),
        pytest.param((64, 112), id="just two windows"),
    ],
)
def test_small_scenes_are_mirrored_as_often_as_needed(model, network, engine, shape):
    scene = scene_of(shape)
    expected = oracle(scene, network=network, model=model, window=64, overlap=16)
    for crf in (None, CRF):
        found = segment(scene, spec_of(block=64, crf=crf), model=model, engine=engine)
        again = segment(scene, spec_of(block=32, crf=crf), model=model, engine=engine)
        assert np.abs(found.probabilities - expected * 255).max() < 1
        assert (found.labels < 4).all()
        assert found.labels.tobytes() == again.labels.tobytes()
        if crf is None:
            assert_same_labels(found, expected, scene.valid)


# --- exact


def narrow(network):
    """Make most 3 x 3 convolutions of the backbone 1 x 1, so that a pixel sees less far and windows can be small."""
    for block in network.backbone.blocks:
        conv = block.depthwise.conv
        if conv.stride == (1, 1):
            conv.weight = torch.nn.Parameter(conv.weight[:, :, 1:2, 1:2].clone() * 3)
            conv.kernel_size, conv.padding, conv.dilation = (1, 1), (0, 0), (1, 1)
    return network


def exact_case(shape):
    """Return scene, spec, model, network and engine with an overlap of just twice the network's margin."""
    model = tiny_model_spec(n_classes=4, atrous_rates=(1,))
    network = narrow(lively_network(model.network, seed=2))
    margin = margin_px(network)
    assert margin is not None
    assert margin <= 128
    spec = spec_of(blend="exact", window=2 * margin + 48, overlap=2 * margin, block=160)
    return scene_of(shape), spec, model, network, TorchEngine(MultiScale(network, MultiScaleSpec()), EngineSpec(device="cpu"))


def one_pass(scene, spec, model, network):
    """Return the probabilities of one pass over the scene, mirrored to the extent of the lattice."""
    height, width = scene.info.shape
    step, window = spec.grid.step_px, spec.grid.window_px
    extra = [(0, window + -(-max(side - window, 0) // step) * step - side) for side in (height, width)]
    pixels = np.pad(STRETCH.apply(scene.pixels), [(0, 0), *extra], mode="reflect")
    with torch.inference_mode():
        logits = network(torch.from_numpy((pixels - np.float32(model.mean[0])) / np.float32(model.std[0]))[None])
    return torch.softmax(logits, dim=1)[0].numpy()[:, :height, :width]


def tiled(scene, spec, model, engine):
    """Return the float32 probabilities of the whole scene, block by block."""
    blocks = Blocks(shape=scene.info.shape, block_px=spec.grid.block_px)
    result = np.zeros((len(model.classes), *scene.info.shape), np.float32)
    for index in blocks:
        windows = locate(index, shape=scene.info.shape, spec=spec)
        read = windows.read
        pixels = np.pad(scene.pixels, [(0, 0), *((0, max(end, 0)) for end in _beyond(read, scene))], mode="reflect")
        valid = np.ones(pixels.shape[1:], bool)
        at = read.to_slices()
        tile = Tile(window=read, pixels=pixels[:, *at], valid=valid[at])
        result[:, *windows.write.to_slices()] = predict(tile, windows, engine=engine, model=model, spec=spec).probabilities()
    return result


def _beyond(window, scene):
    return window.row_off + window.height - scene.info.height, window.col_off + window.width - scene.info.width


def test_exact_tiles_are_one_pass_over_the_whole_scene():
    scene, spec, model, network, engine = exact_case((150, 310))
    whole, found = one_pass(scene, spec, model, network), tiled(scene, spec, model, engine)
    assert whole.std(axis=(1, 2)).min() > 0.02, "the probabilities must vary"
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-3)


def test_half_the_overlap_would_not_be_exact():
    scene, spec, model, network, engine = exact_case((150, 310))
    overlap = spec.grid.overlap_px // 32 * 16
    less = dataclasses.replace(
        spec, grid=dataclasses.replace(spec.grid, overlap_px=overlap, window_px=overlap + spec.grid.step_px)
    )
    found = tiled(scene, less, model, engine)
    assert np.abs(found - one_pass(scene, less, model, network)).max() > 1e-2, "or the test above could not fail"


def test_exact_blocks_give_the_labels_of_one_pass():
    scene, spec, model, network, engine = exact_case((97, 180))
    whole = one_pass(scene, spec, model, network)
    assert_same_labels(segment(scene, spec, model=model, engine=engine), whole, scene.valid, tolerance=1e-3)


# --- what the engine is given


def test_the_network_sees_every_window_of_a_block_once_and_all_have_one_shape(model, engine):
    scene, spec = scene_of(), spec_of(block=96, crf=CRF)
    spy = Spy(engine)
    segment(scene, spec, model=model, engine=spy)
    assert set(spy.seen) == {(3, 64, 64)}
    assert len(spy.seen) == sum(len(locate(index, shape=SHAPE, spec=spec).network) for index in Blocks(shape=SHAPE, block_px=96))


@pytest.mark.parametrize("limit_bytes", [0, 3 * 4 * 4 * 16**2, 10**9])
@pytest.mark.parametrize("crf", [None, CRF])
def test_windows_kept_from_block_to_block_change_no_byte_and_save_work(model, engine, crf, limit_bytes):
    scene, spec = scene_of(holes=[np.s_[:30, :80]]), spec_of(block=64, crf=crf)
    alone, together = Spy(engine), Spy(engine)
    seen = SeenWindows(limit_bytes)
    for index in Blocks(shape=SHAPE, block_px=64):
        expected = segment_block(index, scene=scene, engine=alone, model=model, spec=spec)
        found = segment_block(index, scene=scene, engine=together, model=model, spec=spec, workplace=Workplace(seen=seen))
        for name in ("labels", "confidence", "probabilities"):
            assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()
    if limit_bytes == 0:
        assert len(together.seen) == len(alone.seen)
    elif limit_bytes < 10**9:
        assert len(together.seen) < len(alone.seen)
    else:
        lattice = network_lattice(SHAPE, spec)
        assert lattice.n_rows * lattice.n_cols - 2 <= len(together.seen) <= lattice.n_rows * lattice.n_cols, "each window once"
        assert not seen._held, "the last block that needs a window drops it"


class Reads:
    """A scene that writes down what is read of it."""

    def __init__(self, scene):
        self.scene, self.info, self.windows = scene, scene.info, []

    def read(self, window):
        self.windows.append(window)
        return self.scene.read(window)


@pytest.mark.parametrize("keeps", [True, False])
def test_pixels_that_only_windows_of_an_earlier_block_need_are_not_read_again(model, engine, keeps):
    spec = spec_of(block=64, crf=CRF)
    first, second = (1, 0), (1, 1)
    seen = SeenWindows(10**9 if keeps else 0)
    workplace = Workplace(seen=seen)
    segment_block(first, scene=scene_of(), engine=engine, model=model, spec=spec, workplace=workplace)
    scene = Reads(scene_of())
    segment_block(second, scene=scene, engine=engine, model=model, spec=spec, workplace=workplace)
    windows = locate(second, shape=SHAPE, spec=spec)
    assert (scene.windows == [windows.read.clip(SHAPE)]) == (not keeps)
    assert scene.windows[0].contains(windows.predict)
    assert scene.windows[0].n_pixels < windows.read.n_pixels


def test_a_block_that_is_done_again_has_the_same_bytes(model, engine):
    spec, seen = spec_of(block=64, crf=CRF), SeenWindows(10**9)
    results = [
        segment_block((0, col), scene=scene_of(), engine=engine, model=model, spec=spec, workplace=Workplace(seen=seen))
        for col in (0, 1, 2, 1, 0)
    ]
    for first, again in ((1, 3), (0, 4)):
        assert results[first].probabilities.tobytes() == results[again].probabilities.tobytes()
        assert results[first].labels.tobytes() == results[again].labels.tobytes()


def test_a_block_lets_the_next_one_in_when_its_network_is_through(model, engine, monkeypatch):
    entry, turn = threading.Lock(), threading.Lock()
    held = []

    def noted(*given, **more):
        held.append((entry.locked(), turn.locked()))
        return refine(*given, **more)

    monkeypatch.setattr("pipeline.segment.refine", noted)
    spy = Spy(engine)
    spy.scores = lambda windows: held.append((entry.locked(), turn.locked())) or engine.scores(windows)
    workplace = Workplace(entry=entry, turn=turn)
    segment_block((0, 0), scene=scene_of(), engine=spy, model=model, spec=spec_of(crf=CRF), workplace=workplace)
    assert held == [(True, True), (False, True)], "the network with the entry, the CRF without"
    assert not entry.locked()


@pytest.mark.parametrize("holes", [(), (np.s_[:, :70],)])
def test_what_was_promised_and_never_came_is_read_after_all(model, engine, holes):
    spec, index = spec_of(block=64, crf=CRF), (1, 1)
    expected = segment_block(index, scene=scene_of(holes=holes), engine=engine, model=model, spec=spec)
    seen, scene = SeenWindows(10**9), Reads(scene_of(holes=holes))
    with seen.promised(locate((1, 0), shape=SHAPE, spec=spec).shared):
        found = segment_block(index, scene=scene, engine=engine, model=model, spec=spec, workplace=Workplace(seen=seen))
    assert found.probabilities.tobytes() == expected.probabilities.tobytes()
    assert found.labels.tobytes() == expected.labels.tobytes()
    assert len(scene.windows) == 2


def test_windows_and_blocks_without_data_cost_nothing(model, engine):
    scene = scene_of(holes=[np.s_[:, :120]])
    spy = Spy(engine)
    spec = spec_of(block=96)
    assert segment_block((0, 0), scene=scene, engine=spy, model=model, spec=spec) is None
    assert spy.seen == []
    result = segment_block((0, 1), scene=scene, engine=spy, model=model, spec=spec)
    assert len(spy.seen) < len(locate((0, 1), shape=SHAPE, spec=spec).network)
    assert (result.labels[:, : 120 - 96] == 255).all()
    assert (result.labels[:, 120 - 96 :] < 4).all()


def test_what_lies_under_nodata_changes_nothing(model, engine):
    scene = scene_of(holes=HOLES)
    painted = MemoryScene(np.where(scene.valid, scene.pixels, 200).astype(np.uint8), scene.valid)
    one, other = (segment(source, spec_of(crf=CRF), model=model, engine=engine) for source in (scene, painted))
    assert one.labels.tobytes() == other.labels.tobytes()
    assert one.confidence.tobytes() == other.confidence.tobytes()
    assert one.probabilities.tobytes() == other.probabilities.tobytes()


def test_probabilities_are_kept_only_on_request(model, engine):
    spec = spec_of(probabilities=False)
    assert segment_block((1, 1), scene=scene_of(), engine=engine, model=model, spec=spec).probabilities is None


@pytest.mark.parametrize("crf", [None, CRF])
def test_a_block_reads_all_that_it_needs_and_writes_only_its_own(crf):
    spec = spec_of(block=64, crf=crf)
    for index in Blocks(shape=SHAPE, block_px=64):
        windows = locate(index, shape=SHAPE, spec=spec)
        assert windows.write == Blocks(shape=SHAPE, block_px=64).window(index)
        assert windows.predict.contains(windows.write)
        assert windows.read.contains(windows.predict)
        assert Window.of_shape(SHAPE).contains(windows.predict)
        assert (len(windows.crf) > 0) == (crf is not None)


def test_a_file_is_segmented_as_its_pixels_are(raster, tiny_model):
    from pipeline.network.checkpoint import load_network
    from pipeline.scene import open_scene

    path = raster(height=70, width=101, nodata=0, holes=((10, 20, 30, 40),))
    model, network = load_network(tiny_model(n_classes=4))
    with open_scene(SceneSpec(uri=str(path), bands=(1, 2, 3))) as scene:
        tile = scene.read(scene.info.window)
        engine = TorchEngine(MultiScale(network, MultiScaleSpec()), EngineSpec(device="cpu"))
        found = segment(scene, spec_of(), model=model, engine=engine)
    assert not tile.valid[10:40, 20:60].any()
    expected = oracle(MemoryScene(tile.pixels, tile.valid), network=network, model=model, window=64, overlap=16)
    assert_same_labels(found, expected, tile.valid)
