import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.network.variants import variant_names

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_variants", FOLDER / "make_variants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_variants_is_the_one_that_its_script_writes(script: ModuleType) -> None:
    assert (FOLDER / "variants.md").read_text() == script.page(), "run: python docs/reference/make_variants.py"


def test_every_variant_has_a_row_and_no_row_is_of_another() -> None:
    rows = [line.split("`")[1] for line in (FOLDER / "variants.md").read_text().splitlines() if line.startswith("| `")]
    n_at_several_scales = len(rows) - len(variant_names())
    assert rows[: len(variant_names())] == list(variant_names())
    assert set(rows[-n_at_several_scales:]) == {f"deeplabv2-resnet101-{context}" for context in ("largefov", "aspp-s", "aspp-l")}
