"""What was measured while a network was trained? One table, ``metrics.csv``, and TensorBoard's files where it is installed.

::

    step,part,scene,class,metric,value
    120,train,,,loss,0.7132
    120,validation,north.tif,road,iou,0.5210
    1000,test,all,,mean_iou,0.6243
"""

from __future__ import annotations

import csv
import io
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.durable_file import replace_durably
from pipeline.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from workflows.confusion import SceneMetrics

TABLE_FILE = "metrics.csv"
"""Within the output folder."""
COLUMNS = ("step", "part", "scene", "class", "metric", "value")
"""Of the table."""

Row = tuple[int, str, str, str, str, float]
"""Updates made, part of the data, scene ("" for all that was seen), class ("" for all), name of the figure, figure."""


class TrainingLog:
    """The rows so far; written as a whole, so that no reader finds half a line."""

    def __init__(self, folder: Path, rows: Iterable[Row] = (), *, tensorboard: bool = True) -> None:
        self._folder = folder
        self.rows: list[Row] = [(int(row[0]), *row[1:5], float(row[5])) for row in rows]
        self._board = _open_board(folder) if tensorboard else None

    def add_step(self, step: int, *, loss: float, learning_rate: float) -> None:
        """Note what a step gave."""
        self._add((step, "train", "", "", "loss", loss))
        self._add((step, "train", "", "", "learning_rate", learning_rate))

    def add_metrics(self, step: int, part: str, metrics: SceneMetrics) -> None:
        """Note the figures of a scene."""
        for name, value in metrics.iou.items():
            if value is not None:
                self._add((step, part, metrics.scene, name, "iou", value))
        for name, figure in (("mean_iou", metrics.mean_iou), ("accuracy", metrics.accuracy)):
            if figure is not None:
                self._add((step, part, metrics.scene, "", name, figure))

    def series(self, part: str, metric: str, *, scene: str = "", class_name: str = "") -> tuple[tuple[float, float], ...]:
        """Return (step, value) of one figure."""
        wanted = (part, scene, class_name, metric)
        return tuple((float(row[0]), row[5]) for row in self.rows if row[1:5] == wanted)

    def write(self) -> None:
        """Write the table; StoreError where that fails, and what was there stays."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((*row[:5], f"{row[5]:.6g}") for row in self.rows)
        try:
            replace_durably(self._folder / TABLE_FILE, text.getvalue().encode())
        except OSError as error:
            raise StoreError(
                f"{self._folder / TABLE_FILE} cannot be written ({error}); the one before is intact: make room, then go on with --resume"
            ) from error
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Close TensorBoard's files."""
        if self._board is not None:
            self._board.close()

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        if self._board is not None:
            step, *names, value = row
            self._board.add_scalar("/".join(name for name in names if name), value, step)


def _open_board(folder: Path) -> Any:
    """Return a writer for TensorBoard, None where it is not installed."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - takes a second, and an extra

    return SummaryWriter(str(folder / "tensorboard"))
