"""Runs of messages cut into one frame a message, for who treats messages one by one (workers/sources/faults.py).

Containers of streams hand out all whole messages as one frame, which is fastest for decoders; here each record,
length-framed message or line becomes a frame of its own, which their decoders take as well. Called by `capture`.
"""

from __future__ import annotations

import numpy as np

from workers.decoders.protocol import FRAME, Batch


def single_messages(batch: Batch, layout: str, record_bytes: int = 0) -> Batch:
    """The same messages, one a frame; layouts that are not of runs ("pcap", "lines", "jsonl") are so already.

    `record_bytes`: of a layout of records of one size.
    """
    if layout in ("pcap", "lines", "jsonl"):
        return batch
    data = batch.buffer
    spans: list[tuple[int, int]] = []
    for offset, size in zip(batch.frames["offset"].tolist(), batch.frames["size"].tolist(), strict=True):
        at, end = offset, offset + size
        while at < end:
            if layout == "itch":
                length = 2 + (data[at] << 8 | data[at + 1])
            elif layout in ("dbn", "dbn-fragment", "dbz"):
                length = data[at] * 4
            elif record_bytes:
                length = record_bytes
            else:  # lines of a table of ticks
                newline = data.find(b"\n", at, end)
                length = (newline + 1 if newline >= 0 else end) - at
            spans.append((at, length))
            at += length
    frames = np.zeros(len(spans), FRAME)
    if spans:
        frames["offset"], frames["size"] = zip(*spans, strict=True)
    return Batch(data, frames)
