"""How is a file made hostile? Seeded damage to bytes, to the words of a VRT, to the metadata of a Zarr store; and known attacks.

Every mutant is a folder of its own. What an attack tries to reach lies beside these folders, in ``outside``.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

HOSTILE_VALUES: list[Any] = [
    *(0, -1, 1, 7, 2**31, 2**40, 2**63, 1e308, float("nan"), "", "..", "../../outside/secret", "/etc/passwd", None, True),
    *([], {}, [[[[]]]], ["../secret"], {"id": "pickle"}, {"name": "numcodecs.pickle"}, [{"id": "json2"}], "object", "|O", "<U4"),
    *("\x00", "EPSG:0", "http://127.0.0.1:9/x", "a" * 5000),
]
BAND = (
    '<VRTRasterBand dataType="Byte" band="1"{band}>{extra}<{source}><SourceFilename relativeToVRT="{relative}">{file}</SourceFilename>'
    '<SourceBand>{number}</SourceBand><SrcRect xOff="{x}" yOff="0" xSize="{size}" ySize="40"/>'
    '<DstRect xOff="0" yOff="0" xSize="50" ySize="40"/>{more}</{source}></VRTRasterBand>'
)
PLAIN = {
    "band": "",
    "extra": "",
    "source": "SimpleSource",
    "relative": 1,
    "file": "left.tif",
    "number": 1,
    "x": 0,
    "size": 50,
    "more": "",
    "head": "",
    "root": "",
    "width": 50,
}
PYTHON = "<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>"
RAW = "<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>50</LineOffset>"
VRT_ATTACKS: list[dict[str, Any]] = [
    *(
        {"file": name, "relative": 0}
        for name in ("{outside}/secret.tif", "{outside}/secret", "/etc/passwd", "/dev/zero", "left.tif")
    ),
    *({"file": name} for name in ("../outside/secret.tif", "link.tif", "linked/secret.tif", "pipe", "scene.vrt", ".", "\x01")),
    *(
        {"file": name}
        for name in ("/vsicurl/http://127.0.0.1:9/x.tif", "/vsimem/x", "/vsizip/{outside}/x.zip", "http://127.0.0.1:9/x")
    ),
    *({"file": name} for name in ("GTIFF_DIR:1:{outside}/secret.tif", "MEM:::DATAPOINTER=1,PIXELS=50,LINES=40", "disguised.tif")),
    *({"file": name} for name in ("&lt;VRTDataset/>", "vrt://{outside}/secret.tif", "WMS:http://127.0.0.1:9/", "nowhere.tif")),
    {"band": ' subClass="VRTRawRasterBand"', "file": "{outside}/secret", "relative": 0, "more": RAW},
    {
        "band": ' subClass="VRTDerivedRasterBand"',
        "extra": PYTHON + "<PixelFunctionCode>import os; os.system('id')</PixelFunctionCode>",
    },
    {"root": ' subClass="VRTWarpedDataset"', "head": "<GDALWarpOptions/>"},
    {"root": ' subClass="VRTPansharpenedDataset"', "head": "<PansharpeningOptions/>"},
    {"head": "<SRS>{outside}/secret.wkt</SRS>"},
    {"head": "<SRS>http://127.0.0.1:9/x</SRS>"},
    {"head": '<SRS>PROJCS["x",EXTENSION["PROJ4","+proj=merc +nadgrids={outside}/secret"]]</SRS>'},
    {"head": '<MaskBand><VRTRasterBand dataType="Byte"/></MaskBand>'},
    {"head": "<GeoTransform>nan,1,0,0,0,-1</GeoTransform>"},
    {"more": "<OpenOptions><OOI key='NUM_THREADS'>ALL_CPUS</OOI></OpenOptions>"},
    {"source": "KernelFilteredSource"},
    {"source": "ArraySource"},
    *({"number": number} for number in (0, -1, 2**40, "mask,1", "two")),
    *({"x": x} for x in (-1, 0.5, 10**9, "inf", "")),
    *({"size": size} for size in (25, 0, 10**9)),
    *({"width": width} for width in (0, -1, 2**40, 2**62, "x")),
]


def mutate_bytes(path: Path, rng: random.Random, other: bytes) -> None:
    """Damage a file in one of eight ways; the first 4 KiB, where headers are, as often as the rest."""
    data = bytearray(path.read_bytes())
    end = min(len(data), 4096) if rng.random() < 0.5 else len(data)
    at = rng.randrange(max(1, end))
    run = 1 << rng.randrange(8)
    way = rng.randrange(8)
    if way == 0:
        for _ in range(run):
            data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    elif way == 1:
        data[at : at + run] = bytes(rng.randrange(256) for _ in range(run))
    elif way == 2:
        del data[at:]
    elif way == 3:
        data[at:at] = bytes(rng.randrange(256) for _ in range(run))
    elif way == 4:
        del data[at : at + run]
    elif way == 5:
        width = rng.choice((1, 2, 4, 8))
        number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, len(data), 2**63)) % 2 ** (8 * width)
        data[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
    elif way == 6:
        data[at : at + 16 * run] = bytes(16 * run)[: max(0, len(data) - at)]
    else:
        data[at:] = other[rng.randrange(max(1, len(other))) :]
    path.write_bytes(data)


def mutate_json(path: Path, rng: random.Random) -> None:
    """Put a hostile value in the place of one that is there, or beside it."""
    document = json.loads(path.read_text())
    holders = [item for item in _containers(document) if item]
    holder = rng.choice(holders)
    key = rng.choice(list(holder) if isinstance(holder, dict) else list(range(len(holder))))
    if rng.random() < 0.15:
        del holder[key]
    else:
        holder[key] = rng.choice(HOSTILE_VALUES)
    path.write_text(json.dumps(document))


def mutate_description(path: Path, rng: random.Random) -> None:
    """Put a hostile value into what a checkpoint says of its network; its weights stay as they are."""
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    (key,) = metadata
    description = path.with_suffix(".json")
    description.write_text(metadata[key])
    mutate_json(description, rng)
    path.write_bytes(safetensors.torch.save(tensors, metadata={key: description.read_text()}))


def write_vrt_attack(folder: Path, index: int) -> Path:
    """Write one of the known attacks by VRT, and what it needs; return the file."""
    outside = folder.parent / "outside"
    attack = VRT_ATTACKS[index % len(VRT_ATTACKS)]
    words = {**PLAIN, **{name: str(value).replace("{outside}", str(outside)) for name, value in attack.items()}}
    (folder / "link.tif").symlink_to(outside / "secret.tif")
    (folder / "linked").symlink_to(outside)
    (folder / "disguised.tif").write_text(f"<VRTDataset><SourceFilename>{outside}/secret</SourceFilename></VRTDataset>")
    os.mkfifo(folder / "pipe")
    entities = '<!DOCTYPE x [<!ENTITY a "{}">]>'.format("b" * 100) if index % 11 == 5 else ""
    path = folder / ("scene.tif" if index % 3 == 0 else "scene.vrt")
    path.write_text(
        f'{entities}<VRTDataset rasterXSize="{words["width"]}" rasterYSize="40"{words["root"]}>{words["head"]}'
        f"{BAND.format(**words)}</VRTDataset>"
    )
    return path


def attack_tiff(folder: Path, path: Path, index: int) -> None:
    """Give a GeoTIFF a companion that shows another file to whoever opens it."""
    outside = folder.parent / "outside"
    raw = (
        '<VRTDataset rasterXSize="203" rasterYSize="101"><Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
        f'<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand"><SourceFilename>{outside}/secret</SourceFilename>{RAW}'
        "</VRTRasterBand></VRTDataset>"
    )
    companion = path.with_name(path.name + (".msk", ".ovr", ".MSK", ".aux.xml", ".aux")[index % 5])
    if index % 10 < 5:
        companion.write_text(raw)
    else:
        companion.symlink_to(outside / "secret.tif")


def attack_zarr(path: Path, index: int) -> None:
    """Lead a reader of a Zarr store out of it, or make it wait."""
    outside = path.parent.parent / "outside"
    chunks = sorted(
        item for item in path.rglob("*") if item.is_file() and item.suffix != ".json" and not item.name.startswith(".z")
    )
    document = next(iter(sorted([*path.rglob("zarr.json"), *path.rglob(".zarray")])))
    chunk = chunks[index % len(chunks)]
    ways: list[Callable[[], object]] = [
        lambda: (chunk.unlink(), chunk.symlink_to(outside / "secret")),
        lambda: (chunk.unlink(), os.mkfifo(chunk)),
        lambda: (chunk.unlink(), chunk.symlink_to("/dev/zero")),
        lambda: chunk.write_bytes(b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94."),
        lambda: (document.unlink(), document.symlink_to(outside / "secret")),
        lambda: (document.unlink(), os.mkfifo(document)),
        lambda: _set(document, "attributes", {"grid_mapping": "../../outside/secret", "proj:wkt2": f"{outside}/secret.wkt"}),
        lambda: _set(document, "attributes", {"proj:wkt2": "http://127.0.0.1:9/x", "spatial:transform": ["a"] * 6}),
        lambda: _set(document, "dimension_names", ["../../outside/secret"] * 3),
        lambda: _set(document, "compressor", {"id": "pickle"}),
        lambda: _set(document, "filters", [{"id": "pickle"}]),
        lambda: _set(document, "codecs", [{"name": "numcodecs.pickle"}, {"name": "bytes"}]),
        lambda: _set(document, "shape", [3, 2**20, 2**20]),
        lambda: _set(document, "shape", [1, 1, 2**39]),
        lambda: document.write_text("[" * 100_000),
    ]
    ways[index % len(ways)]()


def copy_folder(source: Path, target: Path) -> None:
    """Copy one original."""
    shutil.copytree(source, target)


def _set(document: Path, key: str, value: Any) -> None:
    data = json.loads(document.read_text())
    data[key] = value
    document.write_text(json.dumps(data))


def _containers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(item for child in value.values() for item in _containers(child))]
    if isinstance(value, list):
        return [value, *(item for child in value for item in _containers(child))]
    return []
