"""Frames on their way to a GPU, while it still computes the one before."""

from __future__ import annotations

from typing import Any

import torch


class Slot:
    """A frame's place on the host, from which a GPU can fetch it by itself, and on the GPU."""

    def __init__(self, frame: torch.Tensor, device: torch.device) -> None:
        self.pinned = torch.empty_like(frame, memory_format=torch.contiguous_format).pin_memory()
        self.resident = torch.empty_like(self.pinned, device=device)
        new_event: Any = torch.cuda.Event  # torch leaves it untyped, and its streams
        self.sent = new_event()  # the GPU has it
        self.read = new_event()  # all that reads it there is done

    def fits(self, frame: torch.Tensor) -> bool:
        return self.pinned.shape == frame.shape and self.pinned.dtype == frame.dtype


class Uploader:
    """Brings frames to a device; two of them in turn have places there, and a stream of their own.

    On a CPU, and for frames that are on a GPU already, it does what `Tensor.to` does.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._slots: list[Slot | None] = [None, None]
        new_stream: Any = torch.cuda.Stream
        self._stream = new_stream(device) if device.type == "cuda" else None

    def __call__(self, frame: torch.Tensor) -> torch.Tensor:
        """The frame on the device: valid until the second call after this one."""
        if self._stream is None or frame.device.type != "cpu":
            return frame.to(self.device)
        compute = torch.cuda.current_stream(self.device)
        slot, last = self._slots
        if last is not None:
            last.read.record(compute)  # what reads it has all been asked for by now
        if slot is None or not slot.fits(frame):
            slot = Slot(frame, self.device)
        slot.sent.synchronize()  # of two frames ago: the host may write over it
        slot.pinned.copy_(frame)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.read)
            slot.resident.copy_(slot.pinned, non_blocking=True)
            slot.sent.record(self._stream)
        compute.wait_event(slot.sent)
        self._slots = [last, slot]
        return slot.resident
