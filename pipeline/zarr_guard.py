"""What of a Zarr store is never followed or run? Links out of the store, names that leave it, and codecs that are no plain compressors.

A store's metadata names what decodes its chunks, and `pickle` is among the names: it runs whatever the chunk says. Only known compressors
and filters of numbers are let through. Files are read from inside the store only, and only files: a pipe would never end.
"""

from __future__ import annotations

import re
import stat
from functools import cached_property
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore

from pipeline.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

CODECS = frozenset(
    {
        *("bytes", "transpose", "sharding_indexed", "crc32c"),
        *("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"),
        *(
            "adler32",
            "astype",
            "bitround",
            "crc32",
            "delta",
            "fixedscaleoffset",
            "fletcher32",
            "jenkins_lookup3",
            "packbits",
            "pcodec",
        ),
        *("quantize", "shuffle", "zfpy"),
    }
)
"""Codecs that turn bytes into numbers and nothing else."""

_PREFIX = "numcodecs."
_NAME = re.compile(r"[\w. -]*\w")
_MAX_METADATA_BYTES = 64 * 2**20
_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


class InsideStore(LocalStore):
    """A folder of which nothing outside is read, whatever its links and its metadata say."""

    @cached_property
    def _real_root(self) -> Path:
        return self.root.resolve()

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a key as `LocalStore` does; SourceError where it is no file of this folder."""
        self._check(key)
        return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of several keys, checked likewise."""
        wanted = list(key_ranges)
        for key, _ in wanted:
            self._check(key)
        return await super().get_partial_values(prototype, wanted)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a key, checked likewise."""
        self._check(key)
        return super().get_sync(key, prototype=prototype, byte_range=byte_range)

    def _check(self, key: str) -> None:
        path = self.root / key
        try:
            status = path.stat()
        except (OSError, ValueError):  # not there
            return
        if not path.resolve().is_relative_to(self._real_root):
            raise SourceError(
                f"{path} leads out of the store, to {path.resolve()}; only files inside are read: copy the store with cp -rL"
            )
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise SourceError(f"{path} is a pipe, a socket or a device; only files are read: remove it")
        if path.name in _METADATA and status.st_size > _MAX_METADATA_BYTES:
            raise SourceError(
                f"{path} has {status.st_size} bytes; metadata of at most {_MAX_METADATA_BYTES} bytes are read: make the store again"
            )


def check_codecs(uri: str, metadata: dict[str, Any]) -> None:
    """Refuse an array whose metadata name a codec that is not in `CODECS`; nothing was decoded so far."""
    strange = sorted({name for name in _codec_names(metadata) if name.removeprefix(_PREFIX) not in CODECS})
    if strange:
        raise SourceError(
            f"{uri} is stored with {', '.join(strange)}; plain compressors such as zstd, blosc or gzip are decoded: store it again with one"
        )


def is_plain_name(name: str) -> bool:
    """Tell whether the metadata may mean a member of the same group by ``name``."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def _codec_names(value: Any) -> Iterator[str]:
    """Yield the codecs of an array's metadata, those inside of shards too."""
    if not isinstance(value, dict):
        return
    for key in ("codecs", "index_codecs", "filters", "compressor"):
        listed = value.get(key) or ()
        for codec in listed if isinstance(listed, (list, tuple)) else (listed,):
            yield str(codec.get("id", codec.get("name"))) if isinstance(codec, dict) else type(codec).__name__
            yield from _codec_names(codec.get("configuration") if isinstance(codec, dict) else None)
