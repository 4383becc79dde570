"""Who may import whom: cli -> workflows -> pipeline, and one door per third-party library."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("pipeline", "workflows") for path in (ROOT / folder).rglob("*.py"))

DOORS = {
    "zarr": {"pipeline/store.py", "pipeline/durable_store.py", "pipeline/zarr_scene.py", "pipeline/zarr_guard.py"},
    "rasterio": {
        *(
            f"pipeline/{name}.py"
            for name in ("gdal_scene", "gdal_build", "georef", "staging", "geotiff", "conventions", "damage")
        ),
        "workflows/label_warp.py",
        "workflows/polygons.py",
    },
    "geopandas": {"workflows/polygons.py"},
    "shapely": {"workflows/polygons.py"},
    "pydensecrf": {"pipeline/crf/pydensecrf.py"},
    "numba": {f"pipeline/{name}.py" for name in ("compiled", "lanes", "crf/mean_field", "crf/norms")},
    "llvmlite": {"pipeline/lanes.py"},
    "dask": {"workflows/cluster.py", "workflows/local_workers.py"},
    "distributed": {"workflows/cluster.py", "workflows/dask_executor.py", "workflows/local_workers.py"},
    "dask_cuda": {"workflows/local_workers.py"},
    "click": {"cli.py"},
    "safetensors": {"pipeline/network/checkpoint.py", "pipeline/network/model_file.py"},
    "openvino": {"pipeline/engine/openvino_engine.py", "pipeline/engine/openvino_conversion.py"},
}
LIGHT = (
    "store",
    "durable_store",
    "durable_file",
    "receipt",
    "scene",
    "scene_info",
    "gdal_scene",
    "zarr_scene",
    "grid",
    "window",
    "labels",
)
"""Parts of the pipeline without torch: readers and writers start fast."""


def imported(path: Path) -> set[str]:
    """Return the full names of the modules that a file imports, inside functions too, but not those for type checkers only."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for statement in guard.body
        for node in ast.walk(statement)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def importers(library: str) -> set[str]:
    files = [*SOURCES, ROOT / "cli.py"]
    return {str(path.relative_to(ROOT)) for path in files if any(name.split(".")[0] == library for name in imported(path))}


@pytest.mark.parametrize("library", sorted(DOORS))
def test_a_library_has_its_doors_and_no_other(library):
    assert importers(library) <= DOORS[library]


@pytest.mark.parametrize("library", ["zarr", "rasterio", "pydensecrf", "distributed"])
def test_the_doors_are_in_use(library):
    assert importers(library)


@pytest.mark.parametrize("name", LIGHT)
def test_readers_and_writers_do_not_load_torch(name):
    assert not {module for module in imported(ROOT / "pipeline" / f"{name}.py") if module.split(".")[0] == "torch"}


def test_the_pipeline_imports_nothing_above_it():
    for path in SOURCES:
        if path.is_relative_to(ROOT / "pipeline"):
            roots = {name.split(".")[0] for name in imported(path)}
            assert not roots & {"workflows", "cli", "dask", "distributed", "click", "rich"}, path


def test_nothing_imports_the_command_line():
    assert importers("cli") == set()


def test_the_command_line_touches_no_pixels():
    roots = {name.split(".")[0] for name in imported(ROOT / "cli.py")}
    assert not roots & {"numpy", "zarr", "rasterio", "torch", "dask", "distributed", "PIL", "pydensecrf"}


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def test_the_pipeline_runs_without_cluster_and_command_line():
    # rasterio imports click by itself; that no module of the pipeline does is tested above
    above = {"dask", "distributed", "rich", "workflows", "cli"}
    code = f"import pipeline, pipeline.segment, pipeline.store, sys; print([n for n in {sorted(above)} if n in sys.modules])"
    assert run_python(code) == "[]"


def test_the_command_line_starts_without_torch_and_dask():
    code = "import cli, sys; print(sorted({n.split('.')[0] for n in sys.modules} & {'torch', 'dask', 'distributed', 'rasterio', 'zarr'}))"
    assert run_python(code) == "[]"


def test_a_coordinator_loads_nothing_that_only_workers_need():
    code = "import workflows.segment_scene, workflows.cluster, sys; print([n for n in ('torch', 'numba', 'openvino') if n in sys.modules])"
    assert run_python(code) == "[]"


def test_a_worker_loads_torch_only_where_somebody_needs_it():
    assert run_python("import workflows.worker, sys; print('torch' in sys.modules)") == "False"


@pytest.mark.skipif(importlib.util.find_spec("importlinter") is None, reason="import-linter is not installed")
def test_the_contracts_hold():
    command = Path(sys.executable).with_name("lint-imports")
    found = str(command) if command.exists() else shutil.which("lint-imports")
    done = subprocess.run([str(found), "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
