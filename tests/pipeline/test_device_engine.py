"""Blocks on a device: the same numbers as on the CPU's own way, in any batch; without a GPU, torch's CPU stands for the device."""

import threading

import numpy as np
import pytest
import torch
from factories import MemoryScene, lively_network, texture, tiny_model_spec

from pipeline.blend import Blender
from pipeline.blended import BlendedHere
from pipeline.engine.choose import choose_precision
from pipeline.engine.cudnn_fused import FusedConvolution, fuse
from pipeline.engine.device_engine import DeviceEngine, memory_format_for
from pipeline.engine.device_memory import enough_memory
from pipeline.engine.engines import open_engine, predict_windows
from pipeline.engine.on_device import DeviceBlender, DeviceRooms, DeviceTile
from pipeline.engine.protocol import EngineSpec
from pipeline.errors import BlockError
from pipeline.grid import Lattice
from pipeline.network.cells import Cells
from pipeline.network.checkpoint import load_network
from pipeline.network.convolution import ConvNormActivation
from pipeline.network.deeplab import build_network
from pipeline.network.fold import fold_batch_norm
from pipeline.network.image_pooling import assemble
from pipeline.network.late import LateNetwork
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.network.multiscale import MultiScale
from pipeline.network.spec import MultiScaleSpec
from pipeline.network.variants import variant, variant_names
from pipeline.normalise import normalise
from pipeline.scene import SceneSpec, Tile
from pipeline.seen_windows import SeenWindows
from pipeline.segment import segment_block
from pipeline.spec import GridSpec, OutputSpec, SegmentSpec
from pipeline.stretch import Stretch
from pipeline.window import Window
from pipeline.workplace import Workplace

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
devices = pytest.mark.parametrize("device", ["cpu:0", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
gpu = [pytest.mark.gpu, needs_gpu]
OUTER = Window(row_off=-3, col_off=10, height=40, width=52)
INNER = Window(row_off=5, col_off=20, height=16, width=24)


@pytest.fixture(autouse=True)
def few_windows_at_once(monkeypatch):
    """A batch of 64 small windows is no more of a test than one of four."""
    monkeypatch.setattr("pipeline.engine.device_engine._MOST_AT_ONCE", 4)


@pytest.fixture(scope="module")
def model():
    return tiny_model_spec(n_classes=4)


@pytest.fixture(scope="module")
def network(model):
    return lively_network(model.network, seed=5)


def windows_of(n, side=64):
    pixels = [texture((3, side, side), dtype="float32", seed=seed) for seed in range(20, 20 + n)]
    return ((np.stack(pixels) - 127.5) / 60).astype(np.float32)


def engine_on(device, network, *, side=64, multiscale=MultiScaleSpec(), **settings):  # noqa: B008
    system = MultiScale(network, multiscale)
    return DeviceEngine(system, EngineSpec(**settings), device=torch.device(device), window_px=side)


def engine_here(network, *, side=64, multiscale=MultiScaleSpec()):  # noqa: B008
    return open_engine(
        LateNetwork.loaded(MultiScale(network, multiscale)), EngineSpec(device="cpu", engine="torch"), window_px=side
    )


# --- pixels


@devices
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", ">u2", ">f4"])
@pytest.mark.parametrize("identity", [True, False])
def test_windows_are_normalised_to_the_same_bytes(model, device, dtype, identity):
    rng = np.random.default_rng(4)
    pixels = rng.uniform(0, 120, (3, 40, 52)).astype(dtype)
    if pixels.dtype.kind == "f":
        pixels[0, 9, 30] = np.nan
    tile = Tile(window=OUTER, pixels=pixels, valid=rng.random((40, 52)) < 0.9)
    stretch = Stretch.identity(3) if identity else Stretch(low=(10.0, 0.5, 7.0), high=(100.0, 90.0, 7.0))
    expected = normalise(tile, INNER, stretch=stretch, model=model)
    there = DeviceTile(tile, stretch=stretch, model=model, device=torch.device(device))
    for _ in range(2):  # what is made of a window leaves the tile as it is
        np.testing.assert_array_equal(there.load(INNER)().cpu().numpy(), expected)


def test_pixels_that_may_not_be_written_are_taken_too(model):
    pixels = texture((3, 40, 52), seed=1)
    pixels.flags.writeable = False
    tile = Tile(window=OUTER, pixels=pixels, valid=np.ones((40, 52), bool))
    stretch = Stretch.identity(3)
    found = DeviceTile(tile, stretch=stretch, model=model, device=torch.device("cpu")).load(INNER)()
    np.testing.assert_array_equal(found.numpy(), normalise(tile, INNER, stretch=stretch, model=model))


# --- scores to labels


def both_blended(device, *, n_classes, cells, blend="taper", seed=0):
    lattice = Lattice(shape=(90, 100), size_px=64, step_px=48)
    target = Window(row_off=10, col_off=20, height=75, width=70)
    blenders = (
        Blender(target, lattice, n_classes=n_classes, blend=blend, cells=cells),
        DeviceBlender(target, lattice, n_classes=n_classes, blend=blend, cells=cells, device=torch.device(device)),
    )
    rng = np.random.default_rng(seed)
    n_cells = cells.n_covering(64)
    for index in lattice.touching(target):
        scores = rng.normal(0, 3, (n_classes, n_cells, n_cells)).astype(np.float32)
        for blender in blenders:
            blender.add(index, scores)
    return [blender.blended() for blender in blenders]


@devices
@pytest.mark.parametrize("blend", ["taper", "exact"])
@pytest.mark.parametrize("n_classes", [1, 2, 5, 21])
@pytest.mark.parametrize("cells", [Cells(factor=8), Cells(), Cells(factor=9, alignment="corner")])
def test_windows_are_blended_to_the_same_probabilities(device, blend, n_classes, cells):
    here, there = both_blended(device, n_classes=n_classes, cells=cells, blend=blend)
    np.testing.assert_allclose(there.probabilities(), here.probabilities(), rtol=0, atol=2e-6)


@devices
@pytest.mark.parametrize("n_classes", [1, 5, 21])
def test_labels_and_what_is_stored_follow_as_on_the_cpu(device, n_classes):
    there = both_blended(device, n_classes=n_classes, cells=Cells(factor=8))[1]
    here = BlendedHere(there.probabilities())  # the same numbers
    part = np.s_[4:60, 3:68]
    valid = np.random.default_rng(1).random((56, 65)) < 0.8
    for found, expected in zip(there.classify(part, valid), here.classify(part, valid), strict=True):
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(there.quantise(part, valid), here.quantise(part, valid))


@devices
def test_of_classes_that_are_as_probable_the_first_is_taken(device):
    target = Window.of_shape((4, 4))
    lattice = Lattice(shape=(4, 4), size_px=4, step_px=4)
    blender = DeviceBlender(target, lattice, n_classes=4, blend="taper", cells=Cells(), device=torch.device(device))
    scores = np.zeros((4, 4, 4), np.float32)
    scores[1:3, :2] = 5
    blender.add((0, 0), scores)
    labels, _ = blender.blended().classify(np.s_[:, :], np.ones((4, 4), bool))
    np.testing.assert_array_equal(labels, [[1] * 4, [1] * 4, [0] * 4, [0] * 4])


# --- the network


@devices
@pytest.mark.parametrize("n", [1, 3, 4, 9])
@pytest.mark.parametrize("multiscale", [MultiScaleSpec(), MultiScaleSpec(scales=(1.0, 0.5), flip=True)])
def test_a_device_gives_what_the_cpu_gives(network, device, n, multiscale):
    windows, there = windows_of(n), engine_on(device, network, multiscale=multiscale, precision="fp32")
    found = predict_windows(there, windows)
    np.testing.assert_allclose(found, predict_windows(engine_here(network, multiscale=multiscale), windows), rtol=0, atol=1e-3)
    assert found.tobytes() == predict_windows(there, windows).tobytes()


@devices
@pytest.mark.parametrize("side", [64, 256])
def test_a_window_gets_the_same_bytes_at_any_place_of_a_batch(network, device, side):
    there, windows = engine_on(device, network, side=side), windows_of(4, side)
    assert predict_windows(there, windows[::-1])[::-1].tobytes() == predict_windows(there, windows).tobytes()


def test_windows_are_taken_a_few_batches_ahead_of_what_is_asked_for(monkeypatch, network):
    monkeypatch.setattr("pipeline.engine.device_engine._MOST_AT_ONCE", 2)
    taken, windows = [], windows_of(1)
    scores = engine_on("cpu:0", network).scores((lambda i=i: (taken.append(i), windows[0])[1]) for i in range(20))
    next(scores)
    assert taken == list(range(6)), "three batches of two"
    assert len(list(scores)) == 19


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=gpu), pytest.param("tf32", marks=gpu)])
def test_lower_precision_says_so_and_is_near(precision):
    network = load_network(resolve_model(DEFAULT_MODEL))[1]
    windows = windows_of(2, 128)
    device = "cuda" if precision != "bf16" else "cpu:0"
    exact = predict_windows(engine_on(device, network, side=128, precision="fp32"), windows)
    engine = engine_on(device, network, side=128, precision=precision)
    rough = predict_windows(engine, windows)
    assert engine.name == f"torch {precision}"
    assert 0 < np.abs(rough - exact).mean() < 0.05


@pytest.mark.parametrize(("fits", "n_calls"), [(4, [4]), (2, [4, 2, 2]), (1, [4, 2, 1, 1, 1, 1])])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("in the interpreter: CUDA out of memory")]
)
def test_a_batch_that_the_device_cannot_hold_is_halved(monkeypatch, network, fits, n_calls, error):
    engine, calls = engine_on("cpu:0", network), []

    def score(batch):
        calls.append(len(batch))
        if len(batch) > fits:
            raise error
        return batch

    monkeypatch.setattr(engine._network, "score", score)
    monkeypatch.setattr(engine, "_whole", score)
    windows = windows_of(3)
    loads = [lambda window=window: window for window in windows]
    np.testing.assert_array_equal(list(engine.scores(loads)), windows)
    assert calls == n_calls
    calls.clear()
    list(engine.scores(loads))
    assert calls == [fits] * (4 // fits)


def test_a_device_that_cannot_hold_one_window_is_said_to_be_so(monkeypatch, network):
    def score(_batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(MultiScale, "score", lambda _, batch: score(batch))
    engine = engine_on("cpu:0", network)
    with pytest.raises(BlockError, match=r"not enough memory for one window of 64 px; use a smaller --window"):
        list(engine.scores([lambda: windows_of(1)[0]]))


def test_other_errors_of_a_network_are_told(monkeypatch, network):
    engine = engine_on("cpu:0", network)

    def score(_batch):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(engine, "_whole", score)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(engine.scores([lambda: windows_of(1)[0]]))


@pytest.mark.parametrize("name", variant_names())
def test_every_network_is_traced_and_gives_the_same_bytes(monkeypatch, caplog, name):
    torch.manual_seed(0)
    network = build_network(variant(name).network).eval()
    system = assemble(network, MultiScaleSpec(), mode="window" if network.spec.image_pooling == "global" else None)
    side = 65 if network.spec.alignment == "corner" else 64
    monkeypatch.setattr("pipeline.engine.device_engine._MOST_AT_ONCE", 2)
    engine = DeviceEngine(system, EngineSpec(), device=torch.device("cpu", 0), window_px=side)
    assert not caplog.text
    windows = windows_of(3, side)
    loads = [lambda window=window: window for window in windows]
    traced = list(engine.scores(loads))
    engine._whole = None
    for found, expected in zip(traced, engine.scores(loads), strict=True):
        assert found.tobytes() == expected.tobytes()


def test_a_device_that_cannot_hold_a_block_is_said_to_be_so():
    message = r"device cpu has not enough memory for the pixels; use a smaller --block"
    with pytest.raises(BlockError, match=message), enough_memory(torch.device("cpu"), "the pixels"):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("name", variant_names())
def test_convolutions_that_cudnn_joins_with_what_follows_give_the_same_scores(monkeypatch, name, precision):
    monkeypatch.setattr("pipeline.engine.device_engine._MOST_AT_ONCE", 2)
    torch.manual_seed(0)
    network = build_network(variant(name).network).eval()
    system = assemble(network, MultiScaleSpec(), mode="window" if network.spec.image_pooling == "global" else None)
    side = 129 if network.spec.alignment == "corner" else 128
    windows = windows_of(1, side)
    engine = DeviceEngine(system, EngineSpec(precision=precision), device=torch.device("cuda"), window_px=side)
    can_be_joined = any(
        isinstance(layer, ConvNormActivation)
        and layer.conv.groups == 1
        and isinstance(layer.activation, torch.nn.ReLU | torch.nn.ReLU6)
        for layer in system.modules()
    )
    is_wanted = precision == "fp32" or memory_format_for(system, precision) == torch.channels_last
    assert any(isinstance(layer, FusedConvolution) for layer in engine._network.modules()) == (can_be_joined and is_wanted)
    (found,) = engine.scores([lambda: windows[0]])
    with torch.inference_mode():
        expected = system.double().score(torch.from_numpy(windows).double())[0].numpy()
    tolerance = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2, "bf16": 1e-1}[precision]
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_what_follows_a_convolution_is_joined_where_there_is_something(network):
    folded = fold_batch_norm(MultiScale(network, MultiScaleSpec()))
    n_layers = sum(isinstance(layer, ConvNormActivation) for layer in folded.modules())
    plain = [
        layer
        for layer in folded.modules()
        if isinstance(layer, ConvNormActivation) and (layer.conv.groups > 1 or isinstance(layer.activation, torch.nn.Identity))
    ]
    fuse(folded)
    left = [layer for layer in folded.modules() if isinstance(layer, ConvNormActivation)]
    assert left == plain
    assert 0 < len(left) < n_layers


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("deeplabv3plus-resnet101", "fp32", torch.contiguous_format),
        ("deeplabv3plus-resnet101", "tf32", torch.channels_last),
        ("deeplabv3plus-resnet101", "fp16", torch.channels_last),
        ("deeplabv3plus-mobilenet_v2", "tf32", torch.contiguous_format),
        ("deeplabv3plus-xception65", "bf16", torch.contiguous_format),
    ],
)
def test_channels_are_last_where_matrix_units_want_them_and_no_kernel_is_depthwise(name, precision, expected):
    assert memory_format_for(MultiScale(build_network(variant(name).network), MultiScaleSpec()), precision) == expected


@pytest.mark.parametrize(
    ("asked", "capability", "expected"),
    [
        ("auto", (9, 0), "tf32"),
        ("auto", (8, 0), "tf32"),
        ("auto", (7, 5), "fp32"),
        ("fp32", (9, 0), "fp32"),
        ("fp16", (7, 5), "fp16"),
    ],
)
def test_auto_is_tf32_where_a_device_has_it(monkeypatch, asked, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision(EngineSpec(precision=asked), "cuda") == expected
    assert choose_precision(EngineSpec(precision="auto"), "cpu") == "fp32"


# --- whole blocks


def spec_of(**more):
    return SegmentSpec(
        scene=SceneSpec(uri="in memory", bands=(1, 2, 3)),
        model_path="",
        model_sha256="",
        stretch=Stretch(low=(10.0, 0.0, 5.0), high=(240.0, 255.0, 230.0)),
        grid=GridSpec(block_px=64, window_px=64, overlap_px=16),
        output=OutputSpec(chunk_px=16, probabilities=True),
        **more,
    )


@devices
def test_a_block_on_a_device_is_the_block_of_the_cpu(model, network, device):
    valid = np.ones((150, 203), bool)
    valid[40:80, 50:90] = False
    scene = MemoryScene(texture((3, 150, 203), seed=3), valid)
    there, here = engine_on(device, network, precision="fp32"), engine_here(network)
    seen = SeenWindows(10**9)
    for index in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 3)]:
        expected = segment_block(index, scene=scene, engine=here, model=model, spec=spec_of())
        found = segment_block(index, scene=scene, engine=there, model=model, spec=spec_of(), workplace=Workplace(seen=seen))
        again = segment_block(index, scene=scene, engine=there, model=model, spec=spec_of())
        assert np.abs(found.probabilities.astype(int) - expected.probabilities).max() <= 1
        assert (found.labels == expected.labels).mean() > 0.999
        assert found.labels.tobytes() == again.labels.tobytes()
        assert found.probabilities.tobytes() == again.probabilities.tobytes()


def test_a_block_on_a_device_lets_the_next_one_compute_while_it_is_labelled(monkeypatch, model, network):
    turn, held = threading.Lock(), []
    classify = DeviceBlender.classify

    def noted(*given):
        held.append(turn.locked())
        return classify(*given)

    monkeypatch.setattr(DeviceBlender, "classify", noted)
    scene = MemoryScene(texture((3, 150, 203), seed=3), np.ones((150, 203), bool))
    engine = engine_on("cpu:0", network)
    segment_block((0, 0), scene=scene, engine=engine, model=model, spec=spec_of(), workplace=Workplace(turn=turn))
    assert held == [False]


@pytest.mark.gpu
@needs_gpu
def test_rooms_are_streams_of_their_own_and_come_back():
    rooms = DeviceRooms(torch.device("cuda"), n_blocks=2)
    order = threading.Lock()
    with rooms.taken(order):
        first = torch.cuda.current_stream()
        with rooms.taken(order):
            assert len({first, torch.cuda.current_stream(), torch.cuda.default_stream()}) == 3
    with rooms.taken(order), rooms.taken(order):
        assert not order.locked()
