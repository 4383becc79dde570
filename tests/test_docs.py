"""Is what the documentation says still so? Links, commands, options, examples, and the build of the site."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import numpy as np
import pytest
import yaml

from cli import atrous
from pipeline.georef import Georef
from pipeline.network.spec import ClassSpec
from pipeline.store import create_store, write_block
from pipeline.store_layout import StoreLayout

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CLI_PAGE = ROOT / "docs" / "reference" / "cli.md"

_FENCE = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Fence(NamedTuple):
    page: Path
    line: int
    before: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _fences() -> Iterator[Fence]:
    for page in PAGES:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            yield Fence(page, line, match["before"], match["language"], match["text"])


FENCES = list(_fences())


def _of(*languages: str) -> list[Fence]:
    return [fence for fence in FENCES if fence.language in languages]


def _prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


# Links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_and_image_leads_somewhere(page):
    for target in _LINK.findall(_prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in {_slug(heading) for heading in _HEADING.findall(_prose(file))}, f"{page}: {target}"


def _slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_path_of_this_machine(page):
    assert not re.search(r"/work/|/tmp/x|\.\./shared", page.read_text())


# Fences


def test_every_fence_is_of_a_kind_that_is_checked_or_is_plain_text():
    checked = {"bash", "python", "toml", "json", "yaml", "text"}
    assert not [str(fence) for fence in FENCES if fence.language not in checked]


def test_every_python_fence_is_run_or_says_why_not():
    reasons = [fence for fence in _of("python") if not re.match(r"<!-- (run|not run: .+) -->$", fence.before)]
    assert not [str(fence) for fence in reasons]


def _documents(fence: Fence) -> list[object]:
    loads = {"toml": tomllib.loads, "json": json.loads}
    return list(yaml.safe_load_all(fence.text)) if fence.language == "yaml" else [loads[fence.language](fence.text)]


@pytest.mark.parametrize("fence", _of("toml", "json", "yaml"), ids=str)
def test_data_can_be_parsed(fence):
    assert all(isinstance(document, dict) for document in _documents(fence))


def _leaves_of(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves_of(child, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _known_to_dask() -> set[str]:
    import dask
    import distributed  # noqa: F401  (brings its defaults)

    return {name for name, _ in _leaves_of({"distributed": dask.config.get("distributed")})}


DASK_SETTINGS = [fence for fence in _of("yaml") if fence.text.startswith("distributed:")]


@pytest.mark.parametrize("fence", DASK_SETTINGS, ids=str)
def test_settings_for_dask_are_known_to_it_and_are_ours(fence):
    from workflows.cluster import _SILENT_SETTINGS
    from workflows.local_workers import SETTINGS

    ours, known = {**SETTINGS, **_SILENT_SETTINGS}, _known_to_dask()
    for name, value in _leaves_of(_documents(fence)[0]):
        assert name in known or ".pre-spawn-environ." in name, f"{fence}: {name}"
        assert value == ours.get(name, value), f"{fence}: {name}"
    if "tls" not in fence.text:
        assert {name for name, _ in _leaves_of(_documents(fence)[0])} <= set(ours)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("fence", _of("bash"), ids=str)
def test_shell_lines_can_be_parsed(fence):
    done = subprocess.run(["bash", "-n"], input=fence.text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("fence", _of("toml"), ids=str)
def test_configuration_files_have_known_keys(fence):
    from workflows.training_spec import TrainSpec

    run = {parameter.name for parameter in atrous.commands["segment"].params}
    training = {field.name for field in dataclasses.fields(TrainSpec)}
    names = {name.replace("-", "_") for name in tomllib.loads(fence.text)}
    assert names <= run or names <= training


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_for_dask_are_known_to_it(page):
    found = re.findall(r"\bDASK_(DISTRIBUTED__\w+)", page.read_text())
    known = {name.upper().replace("-", "_").replace(".", "__") for name in _known_to_dask()}
    assert set(found) <= known


# Commands


def _commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``atrous ...`` in shell fences and in inline code, with the place where it stands."""
    for fence in _of("bash"):
        for line in fence.text.replace("\\\n", " ").splitlines():
            if re.match(r"\s*atrous ", line):
                yield str(fence), shlex.split(line, comments=True)
    for fence in _of("yaml"):
        for words in re.findall(r"(?:command|args): (\[atrous.*\])$", fence.text, flags=re.MULTILINE):
            yield str(fence), yaml.safe_load(words)
    for page in PAGES:
        for code in re.findall(r"`(atrous [^`]+)`", _prose(page)):
            yield str(page.relative_to(ROOT)), shlex.split(code)


COMMANDS = [(place, words) for place, words in _commands() if "[OPTIONS]" not in words]


@pytest.mark.parametrize(("place", "words"), COMMANDS, ids=[f"{place} {' '.join(words)}" for place, words in COMMANDS])
def test_every_command_exists_with_all_its_options(place, words):
    command, rest = _resolve([word for word in words[1:] if word != "&"])
    if isinstance(command, click.Group):
        assert set(rest) <= {"--version", "--help"}
        return
    parent = atrous.make_context("atrous", [], resilient_parsing=True)
    context = click.Context(command, parent=parent)  # click keeps the help option that the first context asks for
    values, left_over, _ = command.make_parser(context).parse_args(rest)
    assert not left_over, f"{place}: too many arguments"
    for parameter in command.params:
        value = values.get(parameter.name)
        if isinstance(value, str) and not value.startswith("$"):
            parameter.type_cast_value(context, value)  # raises where it is no number or none of the choices
        elif value is None and isinstance(parameter, click.Argument):
            # In running text, `atrous plan` is the command's name.
            assert not _in_shell(place), f"{place}: {parameter.name} is missing"


def _resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = atrous
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def _in_shell(place: str) -> bool:
    return place.rpartition(":")[2].isdigit()


def _leaves(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    for child, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _leaves(command, f"{name} {child}")
        else:
            yield f"{name} {child}", command


LEAVES = dict(_leaves(atrous, "atrous"))


def _section(name: str) -> str:
    sections = re.split(r"^## ", CLI_PAGE.read_text(), flags=re.MULTILINE)
    return next(section for section in sections if section.startswith(f"{name}\n"))


@pytest.mark.parametrize("name", LEAVES)
def test_the_reference_lists_exactly_the_options_of_a_command(name):
    rows = re.findall(r"^\| (`-.+?) \|", _section(name), flags=re.MULTILINE)
    listed = [option for row in rows for option in re.findall(r"`(-[^`]+)`", row)]
    options = [parameter for parameter in LEAVES[name].params if isinstance(parameter, click.Option)]
    assert sorted(listed) == sorted(text for option in options for text in (*option.opts, *option.secondary_opts))


@pytest.mark.parametrize("name", LEAVES)
def test_the_reference_gives_the_defaults_of_a_command(name):
    rows = dict(re.findall(r"^\| .*`(--[^`]+)` \| `([^`]+)` \|", _section(name), flags=re.MULTILINE))
    defaults = {
        option.opts[-1]: str(option.default)
        for option in LEAVES[name].params
        if isinstance(option, click.Option) and isinstance(option.default, str | int | float) and not option.is_flag
    }
    assert rows == defaults


def test_the_reference_has_no_command_that_does_not_exist():
    headings = re.findall(r"^## (atrous .+)$", CLI_PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(LEAVES)


@pytest.mark.parametrize("page", [CLI_PAGE, ROOT / "README.md"], ids=lambda page: page.name)
def test_exit_codes_are_those_of_the_command_line(page):
    import cli

    codes = {value for name, value in vars(cli).items() if name.startswith("EXIT_")}
    listed = re.findall(r"^\| (\d+) \| ", page.read_text(), flags=re.MULTILINE)
    assert set(map(int, listed)) == codes | {0}


# Examples


def _write_store(path: Path) -> None:
    """Make a store as ``atrous segment`` does, with 1000 x 1200 px in two chunks."""
    import rasterio

    classes = [("building", "#3c1098"), ("land", "#8429f6"), ("road", "#6ec1e4"), ("vegetation", "#fedd3a"), ("water", "#e2a929")]
    layout = StoreLayout(
        height=1000,
        width=1200,
        classes=tuple(ClassSpec(name=name, color=color) for name, color in classes),
        georef=Georef(crs_wkt=rasterio.crs.CRS.from_epsg(32640).to_wkt(), transform=(0.5, 0.0, 325000.0, 0.0, -0.5, 2785000.0)),
    )
    create_store(path, layout)
    rows, cols = np.indices((1000, 1200))
    labels = ((rows // 100 + cols // 100) % 5).astype(np.uint8)
    write_block(path, layout.window, {"labels": labels, "confidence": np.full_like(labels, 230)})


RUN = [fence for fence in _of("python") if fence.before == "<!-- run -->"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    pytest.importorskip("rioxarray")
    folder = tmp_path_factory.mktemp("docs")
    _write_store(folder / "city.zarr")
    shutil.copytree(folder / "city.zarr", folder / "small.zarr")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


@pytest.mark.parametrize("page", sorted({fence.page for fence in RUN}), ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, workplace):
    code = "\n".join(fence.text for fence in RUN if fence.page == page)
    done = subprocess.run([sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


# The site


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs mkdocs")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").exists()
