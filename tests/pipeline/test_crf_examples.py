"""pydensecrf's own example, pixel by pixel: drawn annotations become the label images that it published."""

import numpy as np
import pytest
from PIL import Image

from pipeline.crf import cpu, pydensecrf, torch_lattice
from pipeline.crf.energy import CrfSpec

pytest.importorskip("pydensecrf.densecrf")

pytestmark = pytest.mark.shared

SPEC = CrfSpec(
    theta_alpha=80, theta_beta=13, theta_gamma=3, w_appearance=10, w_smoothness=3, n_steps=5, backend="pydensecrf"
)  # inference.py: sxy 3 with compat 3; sxy 80, srgb 13 with compat 10; five steps
GT_PROB = 0.7


def read(folder, name):
    return np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))


def probabilities_of(drawn):
    """Return the probabilities whose -log is the example's unary, and the colours of the classes; black means unknown."""
    colors, ids = np.unique(drawn.reshape(-1, 3), axis=0, return_inverse=True)
    ids = ids.reshape(drawn.shape[:2])
    if not colors[0].any():
        colors, ids = colors[1:], ids - 1
    probabilities = np.full((len(colors), *ids.shape), (1 - GT_PROB) / (len(colors) - 1), np.float32)
    np.put_along_axis(probabilities, ids.clip(0)[None], np.float32(GT_PROB), axis=0)
    probabilities[:, ids < 0] = 1 / len(colors)
    return probabilities, colors


def refined(folder, *, image, drawn, order="rgb", backend=pydensecrf):
    probabilities, colors = probabilities_of(read(folder, drawn))
    guide = read(folder, image).transpose(2, 0, 1).astype(np.float32)
    valid = np.ones(guide.shape[1:], bool)
    marginals = backend.refine(probabilities, guide if order == "rgb" else guide[::-1], valid, SPEC)
    return colors[marginals.argmax(axis=0)]


@pytest.mark.parametrize(
    ("image", "drawn", "published", "order"),
    [
        pytest.param("im1", "anno1", "out1", "rgb", id="1"),
        pytest.param("im2", "anno2", "out2", "rgb", id="2"),
        pytest.param("im3", "anno3", "out3", "rgb", id="3, three classes"),
        pytest.param("im1", "anno1-b", "out1-b", "bgr", id="1-b, nothing unknown"),
    ],
)
def test_every_pixel_is_as_published(shared, image, drawn, published, order):
    found = refined(shared / "crf", image=image, drawn=drawn, order=order)
    assert (found != read(shared / "crf", drawn)).any(axis=-1).mean() > 0.01, "the CRF changes what was drawn"
    np.testing.assert_array_equal(found, read(shared / "crf", published))


@pytest.mark.parametrize("backend", [pytest.param(cpu, id="cpu"), pytest.param(torch_lattice, id="torch")])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_our_lattices_agree_on_nearly_every_pixel(shared, number, backend):
    found = refined(shared / "crf", image=f"im{number}", drawn=f"anno{number}", backend=backend)
    assert (found == read(shared / "crf", f"out{number}")).all(axis=-1).mean() >= 0.999


def test_the_order_of_bands_decides_some_pixels(shared):
    """The lattice is not the same in all directions; this is how the order of ``out1-b`` is known."""
    found = refined(shared / "crf", image="im1", drawn="anno1-b")
    wrong = (found != read(shared / "crf", "out1-b")).any(axis=-1)
    assert 0 < wrong.sum() < 50
