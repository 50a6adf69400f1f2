"""A capture's file as frames: unpacked piece by piece, cut by a container, some of it read ahead.

    CaptureFile -> pieces -> container -> batches of frames
                                |- waiting: those read while the decoder is chosen, given first

Made by workers/decoders/capture.py, which asks for one batch after the other; decoder_choice.py says which container it
is, and looks ahead. Never decodes a message and never reads more than it is asked for.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from workers.decoders.capture_file import CaptureFile, PairedLines
from workers.decoders.detection import detect
from workers.decoders.protocol import Batch, FramingError
from workers.decoders.tick_files import orderbook_of


class CaptureInput:
    """See the module. Not thread-safe.

    Attributes:
        file: what is read; whoever chooses the container may open it otherwise.
        layout: its format, one of FORMATS.
        container: what cuts it into frames; there is none until it is chosen.
        head: a piece that was read and not yet cut.
        waiting: batches read ahead, and how far into the file each reaches, 0 to 1.
        failure: damage that nobody has been told of yet; nothing is read after it.
        ended: nothing comes any more but what waits.
        truncated_bytes: of a last message that is not whole.
    """

    def __init__(self, path: str | os.PathLike[str], layout: str) -> None:
        """Open the file. `layout`: one of FORMATS, "" = find it by content.

        Raises OSError, UnknownFormatError, and FramingError if not even its first piece can be read.
        """
        self.container: Any = None
        self.waiting: list[tuple[Batch, float]] = []
        self.failure: FramingError | None = None
        self.ended = False
        self.truncated_bytes = 0
        self.file: CaptureFile | PairedLines = CaptureFile(path)
        try:
            self.head = self.file.read()
            self.layout = layout or detect(self.head, self.file.path)
            if self.layout == "lobster":
                self.reopen(PairedLines(path, orderbook_of(self.file.path)))
        except BaseException:
            self.file.close()
            raise

    def reopen(self, file: CaptureFile | PairedLines) -> None:
        """The same file, from its begin, read as `file` reads it."""
        self.file.close()
        self.file = file
        self.head = file.read()

    def look_ahead(self) -> bool:
        """One more piece of the file among what waits; False = there is none."""
        piece = self._read()
        if not piece:
            return False
        self.waiting.append((self.container.feed(piece), self.file.progress))
        return True

    def next(self) -> tuple[Batch, float]:
        """The next batch, which may hold no frame, and how far into the file it reaches, 0 to 1."""
        if self.waiting:
            return self.waiting.pop(0)
        piece = self._read()
        batch: Batch = self.container.feed(piece) if piece else self._finish()
        if self.container.error is not None:
            self.failure = self.container.error
            self.ended = not len(batch.frames)
        return batch, self.file.progress

    def close(self) -> None:
        """Closes the file. May be called more than once."""
        self.ended = True
        self.file.close()

    def _read(self) -> bytes:
        if self.failure is not None:
            return b""
        if self.head:
            head, self.head = self.head, b""
            return head
        try:
            return self.file.read()
        except FramingError as failure:
            self.failure = failure
            return b""

    def _finish(self) -> Batch:
        """The input has ended: a last line may lack its newline; of a binary message nothing can be missing."""
        self.ended = True
        left = self.container.finish()
        if left and self.layout in {"lines", "jsonl", "truefx", "lobster"}:
            batch: Batch = self.container.feed(b"\n")
            self.ended = not len(batch.frames)
            return batch
        self.truncated_bytes += left
        return Batch(b"", np.zeros(0, np.uint8))
