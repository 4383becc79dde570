"""Make ``demo.png``, the picture of the README, from the sample scene and the shipped model.

Run from the repository, in the environment that ``make demo`` made: ``.venv/bin/python docs/img/demo.py``.
"""  # noqa: INP001 - a script beside its picture

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SCENE = HERE.parents[1] / "examples" / "dubai-tile2.tif"
LONGEST_PX = 1300


def main() -> None:
    """Segment, export, and store the picture with a palette."""
    atrous = str(Path(sys.executable).with_name("atrous"))
    with tempfile.TemporaryDirectory() as folder:
        labels, picture = f"{folder}/labels.zarr", f"{folder}/map.png"
        subprocess.run([atrous, "segment", str(SCENE), labels], check=True)  # noqa: S603 - our own command
        subprocess.run([atrous, "export", labels, picture, "--max-side", str(LONGEST_PX)], check=True)  # noqa: S603
        image = Image.open(picture).convert("RGB")
    # The octree keeps the colours of the legend; median cut makes one of two similar ones.
    image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(HERE / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
