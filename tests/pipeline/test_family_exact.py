"""With ``exact`` blending, tiles give what one pass over the whole scene gives, for every kind of network without image-level pooling.

The networks have all their layers, rates and strides, and so their real margins; they have fewer channels, or these tests would
take minutes. At the end every named variant runs with its real width, on a strip.
"""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from factories import MemoryScene, lively_network, model_of, texture

from pipeline.engine.protocol import EngineSpec
from pipeline.engine.torch_engine import TorchEngine
from pipeline.errors import SpecError
from pipeline.grid import Blocks
from pipeline.locate import locate
from pipeline.network.backbones import resnet, vgg
from pipeline.network.deeplab import build_network
from pipeline.network.image_pooling import assemble
from pipeline.network.receptive_field import margin_px
from pipeline.network.scales import unit_px
from pipeline.network.spec import MultiScaleSpec, NetworkSpec, with_image_pooling
from pipeline.network.variants import variant, variant_names
from pipeline.scene import SceneSpec, read_reflected
from pipeline.scene_means import measure_scene_means
from pipeline.segment import predict, segment_block
from pipeline.spec import GridSpec, OutputSpec, SegmentSpec
from pipeline.stretch import Stretch

TOLERANCE = 1e-5  # scores of up to 60 travel in float32
"""Of probabilities, in double precision: float32 answers of random networks differ by up to 1e-2, as large windows get other
kernels from the convolution library than small ones and resizing rounds positions; that would hide a pixel that is really missing."""

SLIM_HEAD = {"aspp_channels": 16, "low_level_channels": 8, "decoder_channels": 16}

VGG_LARGEFOV = NetworkSpec(
    n_classes=4,
    architecture="deeplabv1",
    backbone="vgg16",
    output_stride=8,
    image_pooling="off",
    atrous_rates=(12,),
    head_channels=32,
)
RESNET101_ASPP_L = NetworkSpec(
    n_classes=4,
    architecture="deeplabv2",
    backbone="resnet101",
    output_stride=8,
    image_pooling="off",
    atrous_rates=(6, 12, 18, 24),
    bottleneck_stride="1x1",
    entry_rate="own",
)
V3PLUS = NetworkSpec(n_classes=4, image_pooling="off", atrous_rates=(1, 2), **SLIM_HEAD)


@pytest.fixture(autouse=True)
def few_channels(request, monkeypatch):
    """Divide the channels of VGG by eight and those of ResNet by sixteen."""
    if "real_width" not in request.keywords:
        monkeypatch.setattr(resnet, "_WIDTHS", (4, 8, 16, 32))
        monkeypatch.setattr(vgg, "_STAGES", tuple((n // 8, count) for n, count in vgg._STAGES))


CASES = [
    pytest.param(VGG_LARGEFOV, MultiScaleSpec(), id="VGG-16 LargeFOV"),
    pytest.param(dataclasses.replace(VGG_LARGEFOV, side_channels=8), MultiScaleSpec(), id="VGG-16 MSc"),
    pytest.param(RESNET101_ASPP_L, MultiScaleSpec(), id="ResNet-101 ASPP-L"),
    pytest.param(V3PLUS, MultiScaleSpec(), id="v3+"),
    pytest.param(dataclasses.replace(V3PLUS, alignment="corner"), MultiScaleSpec(), id="v3+ with corners aligned"),
    pytest.param(dataclasses.replace(V3PLUS, padding="tf_same"), MultiScaleSpec(), id="v3+ with TF's padding"),
    pytest.param(V3PLUS, MultiScaleSpec(scales=(0.75, 1.0), fusion="max"), id="v3+ at two scales, max"),
    pytest.param(V3PLUS, MultiScaleSpec(scales=(1.25,), flip=True), id="v3+ larger and mirrored, mean"),
]


@pytest.mark.parametrize(("network", "multiscale"), CASES)
def test_tiles_give_what_one_pass_gives(network, multiscale):
    spec, scene, system = case_of(network, multiscale)
    found, whole = tiled(scene, spec, system), one_pass(scene, spec, system)
    assert whole.std(axis=(1, 2)).min() > 0.02, "the probabilities must vary"
    assert np.abs(found - whole).max() <= TOLERANCE


def test_windows_that_end_on_their_last_cell_give_what_one_pass_gives():
    spec, scene, system = case_of(dataclasses.replace(V3PLUS, alignment="corner"), MultiScaleSpec())
    grid = dataclasses.replace(spec.grid, window_px=spec.grid.window_px + 1, overlap_px=spec.grid.overlap_px + 1)
    spec = dataclasses.replace(spec, grid=grid)
    assert np.abs(tiled(scene, spec, system) - one_pass(scene, spec, system)).max() <= TOLERANCE


def test_tiles_with_half_the_overlap_do_not():
    spec, scene, system = case_of(V3PLUS, MultiScaleSpec())
    half = dataclasses.replace(spec.grid, overlap_px=spec.grid.overlap_px // 4 // 16 * 16)
    found = tiled(scene, dataclasses.replace(spec, grid=half), system)
    assert np.abs(found - one_pass(scene, spec, system)).max() > 1e-2


@pytest.mark.parametrize("multiscale", [MultiScaleSpec(), MultiScaleSpec(flip=True)], ids=["single", "mirrored"])
def test_with_the_mean_of_the_scene_image_pooling_is_exact_too(multiscale):
    pooling = dataclasses.replace(V3PLUS, image_pooling="global")
    spec, scene, system = case_of(pooling, multiscale)
    found, whole = tiled(scene, spec, system), one_pass(scene, spec, system)
    assert np.abs(found - whole).max() <= TOLERANCE
    windowed = assemble(system.network, multiscale, mode="window")
    assert np.abs(tiled(scene, spec, windowed) - whole).max() > 1e-3, "or the branch does nothing here"


def test_other_blocks_give_the_same_bytes_at_several_scales():
    spec, scene, system = case_of(V3PLUS, MultiScaleSpec(scales=(0.75, 1.0), flip=True), shape=(200, 310))
    grids = (GridSpec(window_px=128, overlap_px=32, block_px=block_px) for block_px in (128, 96))
    first, second = (labels_of(scene, dataclasses.replace(spec, grid=grid), system) for grid in grids)
    assert first.tobytes() == second.tobytes()
    assert len(np.unique(first)) > 1


@pytest.mark.real_width
@pytest.mark.parametrize("name", variant_names())
def test_a_strip_of_every_named_variant_agrees_beyond_the_margin(name):
    """One cell high, or six for kernels of 4 x 4, which have no tap in the middle; image-level branches average over nothing."""
    network = with_image_pooling(variant(name, n_classes=3).network, "off")
    torch.manual_seed(2)
    built, margin = build_network(network).double().eval(), margin_px(network)
    stride, kept = network.output_stride, 8 * network.output_stride
    first = 5 * stride
    height = stride * (1 if network.head_kernel % 2 else 6)
    scene = torch.randn(1, 3, height, 2 * margin + 20 * stride, dtype=torch.float64)
    with torch.inference_mode():
        whole = built(scene)
        window = built(scene[..., first : first + 2 * margin + kept])
    expected = whole[..., first + margin : first + margin + kept]
    error = (window[..., margin : margin + kept] - expected).abs().max()
    edge = (window[..., :stride] - whole[..., first : first + stride]).abs().max()
    assert float(edge) > 1e-12, "fresh layers shrink what they are given, yet not to the rounding of float64"
    assert float(error) <= 1e-5 * float(edge), "near its edge a window differs, beyond the margin it does not"


# --- helpers


def case_of(network, multiscale, shape=None):
    """Return spec, scene and running network, with an overlap of just what ``exact`` needs, and about three windows by two."""
    model = model_of(network)
    built = lively_network(network, seed=2)
    unit = unit_px(multiscale, network.output_stride)
    overlap = -(-2 * margin_px(network, multiscale) // unit) * unit
    step = -(-64 // unit) * unit
    spec = SegmentSpec(
        scene=SceneSpec(uri="in memory", bands=(1, 2, 3)),
        model_path="none",
        model_sha256="0" * 64,
        stretch=Stretch.identity(3),
        grid=GridSpec(window_px=overlap + step, overlap_px=overlap, blend="exact", block_px=4096),
        multiscale=multiscale,
        output=OutputSpec(chunk_px=32, probabilities=True),
    )
    shape = shape or (overlap + step // 2, overlap + step + step // 2)
    scene = MemoryScene(texture((3, *shape), seed=4), np.ones(shape, bool))
    means = measure_scene_means(scene, built, model=model, spec=spec) if network.image_pooling == "global" else ()
    return spec, scene, assemble(built, multiscale, scene_means=means)


def tiled(scene, spec, system):
    """Return the blended probabilities of the one block that the scene has: (classes, height, width) float32."""
    model = model_of(system.network.spec)
    windows = locate((0, 0), shape=scene.info.shape, spec=spec)
    tile = read_reflected(scene, windows.read)
    return predict(tile, windows, engine=DoubleEngine(system), model=model, spec=spec).probabilities()


class DoubleEngine:
    """Runs the network in float64."""

    name, device = "torch fp64", "cpu"

    def __init__(self, system):
        self._system = copy.deepcopy(system).double().eval()
        self.cells = system.cells

    def scores(self, windows):
        for window in windows:
            with torch.inference_mode():
                yield self._system.score(torch.from_numpy(window())[None].double())[0].float().numpy()

    def predict(self, batch):
        with torch.inference_mode():
            return torch.softmax(self._system(torch.from_numpy(batch).double()), dim=1).float().numpy()


def labels_of(scene, spec, system):
    labels = np.zeros(scene.info.shape, np.uint8)
    blocks = Blocks(shape=scene.info.shape, block_px=spec.grid.block_px)
    for index in blocks:
        labels[blocks.window(index).to_slices()] = block(scene, spec, system, index).labels
    return labels


def block(scene, spec, system, index):
    engine = TorchEngine(system, EngineSpec(device="cpu", threads=2))
    return segment_block(index, scene=scene, engine=engine, model=model_of(system.network.spec), spec=spec)


def one_pass(scene, spec, system):
    """Return the probabilities of one pass over the scene, mirrored to the extent of the lattice: (classes, height, width)."""
    height, width = scene.info.shape
    step, window = spec.grid.step_px, spec.grid.window_px
    extra = [(0, window + -(-max(side - window, 0) // step) * step - side) for side in (height, width)]
    pixels = np.pad(scene.pixels.astype(np.float32), [(0, 0), *extra], mode="reflect")
    probabilities = DoubleEngine(system).predict((pixels[None] - np.float32(127.5)) / np.float32(60))
    return probabilities[0, :, :height, :width]


def test_exact_blending_refuses_scales_at_which_windows_are_cut_elsewhere():
    from pipeline.network.scales import check_scales

    with pytest.raises(SpecError, match=r"multiples of 64"):
        check_scales(MultiScaleSpec(scales=(0.75, 1.0)), window_px=1040, step_px=528, output_stride=16, exact=True)
