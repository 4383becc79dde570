"""How do chunks reach the disk and come back without silent loss? Two stores for zarr, one for each way.

zarr's own store renames whole files into place but never syncs them, so a power cut can leave a file of zero
bytes under a chunk's name; and zarr 3.1 reads an empty shard as fill value.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Self

import google_crc32c
from zarr.storage import LocalStore

from pipeline.durable_file import replace_durably, sync_directory
from pipeline.receipt import ChunkReceipt

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class DurableStore(LocalStore):
    """Writes each value durably, keeps a receipt of it, and does not read the chunks that it replaces.

    A block owns its chunks whole. zarr does not know that at the ragged edge of an array: it would read the
    old chunk and merge, and so a damaged chunk there could never be written again. One instance serves one
    block.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.receipts: list[ChunkReceipt] = []
        self.failures: list[OSError] = []
        self._linked: set[Path] = set()

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: FBT001, FBT002 - zarr's signature
        """Return a store of the same root that writes its receipts into the same list."""
        twin = super().with_read_only(read_only)
        twin.receipts, twin.failures = self.receipts, self.failures
        return twin

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the metadata of that key; None for any chunk."""
        return await super().get(key, prototype, byte_range) if _is_metadata(key) else None

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the metadata of that key; None for any chunk."""
        if not _is_metadata(key):
            return None
        return super().get_sync(key, prototype=prototype, byte_range=byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Write the value durably."""
        await asyncio.to_thread(self._write, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write the value durably."""
        self._write(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write the value durably unless there is one."""
        if not await self.exists(key):
            await self.set(key, value)

    def raise_failure(self) -> None:
        """Raise the first error of the writes so far, where there was one; to be called after zarr's return.

        An error raised by the write itself would make zarr return at once and leave the block's other writes
        running.
        """
        if self.failures:
            raise self.failures[0]

    def _write(self, key: str, value: Buffer) -> None:
        self._check_writable()
        if self.failures:
            return
        try:
            self._write_file(key, value.to_bytes())
        except OSError as error:
            self.failures.append(error)

    def _write_file(self, key: str, data: bytes) -> None:
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(target, data)
        self._sync_ancestors(target.parent)
        self.receipts.append(ChunkReceipt(key=key, n_bytes=len(data), crc32c=google_crc32c.value(data)))

    def _sync_ancestors(self, directory: Path) -> None:
        """Sync the entries of ``directory`` and of the directories above it, once each, up to the root.

        Another process may have made them a moment ago and not have synced them, so that they exist is not
        enough.
        """
        while directory != self.root and directory not in self._linked:
            sync_directory(directory.parent)
            self._linked.add(directory)
            directory = directory.parent


class StrictStore(LocalStore):
    """Reads, and refuses files of zero bytes: zarr 3.1 takes an empty shard for one not yet written."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of that key, None where there is no such file."""
        return _refuse_empty(key, await super().get(key, prototype, byte_range))

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of that key, None where there is no such file."""
        return _refuse_empty(key, super().get_sync(key, prototype=prototype, byte_range=byte_range))


def _is_metadata(key: str) -> bool:
    return key.rsplit("/", 1)[-1] == "zarr.json"


def _refuse_empty(key: str, value: Buffer | None) -> Buffer | None:
    if value is not None and len(value) == 0:
        raise OSError(errno.EIO, "the file has no bytes", key)
    return value
