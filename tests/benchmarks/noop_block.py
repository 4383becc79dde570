"""A block without work: what `scale.py` gives to the workers in place of the real task; they import it by name."""

from pipeline.receipt import ChunkReceipt
from workflows.events import BlockReceipt

ARRAYS = ("confidence", "labels")


def noop_task(_digest: str, index: tuple[int, int], attempt: int) -> BlockReceipt:
    """Return the receipt of a block with two empty files, which nobody wrote."""
    row, col = index
    return BlockReceipt(
        block=index,
        state="done",
        chunks=tuple(ChunkReceipt(key=f"0/{name}/c/{row}/{col}", n_bytes=0, crc32c=0) for name in ARRAYS),
        class_counts=(50, 50, 50, 50, 56),
        n_pixels=256,
        seconds=0.0,
        device="cpu",
        host="here",
        attempt=attempt,
        stage_s={"read": 0.001, "network": 0.01, "crf": 0.01, "label": 0.001, "write": 0.001, "wait": 0.001},
    )
