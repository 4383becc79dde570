"""How many files are open at a time? As many as are used most lately; a training may have more scenes than a process may open files."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pipeline.scene import Scene, SceneInfo
    from pipeline.scene_info import Tile
    from pipeline.window import Window

MOST_OPEN = 128
"""Rasters that are open at a time."""


class OpenFiles:
    """Scenes that are open, the least lately used one first. For one thread."""

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._scenes: OrderedDict[PooledScene, Scene] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scenes)

    def share(self, scene: Scene, reopen: Callable[[], Scene]) -> PooledScene:
        """Return an open scene as one that may be closed and opened again by ``reopen`` between reads."""
        pooled = PooledScene(self, scene, reopen)
        self._keep(pooled, scene)
        return pooled

    def get(self, pooled: PooledScene) -> Scene:
        """Return the scene, open."""
        if pooled not in self._scenes:
            self._keep(pooled, pooled.reopen())
        self._scenes.move_to_end(pooled)
        return self._scenes[pooled]

    def close(self, pooled: PooledScene) -> None:
        """Close the scene if it is open."""
        if pooled in self._scenes:
            self._scenes.pop(pooled).close()

    def _keep(self, pooled: PooledScene, scene: Scene) -> None:
        while len(self._scenes) >= self._most:
            self._scenes.popitem(last=False)[1].close()
        self._scenes[pooled] = scene


class PooledScene:
    """A scene whose file is open only while it is among those that were used lately."""

    def __init__(self, files: OpenFiles, scene: Scene, reopen: Callable[[], Scene]) -> None:
        self._files, self._info, self._bands = files, scene.info, scene.bands
        self.reopen = reopen

    @property
    def info(self) -> SceneInfo:
        """What the header said when the file was opened first."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """The selected bands, counted from 1."""
        return self._bands

    def read(self, window: Window) -> Tile:
        """Read a window inside the scene; WindowError outside, SourceError where the file is damaged or went away."""
        return self._files.get(self).read(window)

    def close(self) -> None:
        """Give back the file handle; a later read would open the file again."""
        self._files.close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
