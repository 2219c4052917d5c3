"""Asynchronous upload of frames to a GPU, overlapped with the previous frame's computation."""

from __future__ import annotations

from typing import Any

import torch


class UploadBuffer:
    """A frame's pinned host buffer and its device buffer."""

    def __init__(self, frame: torch.Tensor, device: torch.device) -> None:
        self.pinned = torch.empty_like(frame, memory_format=torch.contiguous_format).pin_memory()
        self.resident = torch.empty_like(self.pinned, device=device)
        new_event: Any = torch.cuda.Event  # untyped in torch, as its streams
        self.sent = new_event()  # the upload is complete
        self.read = new_event()  # all kernels that read the device buffer are complete

    def fits(self, frame: torch.Tensor) -> bool:
        return self.pinned.shape == frame.shape and self.pinned.dtype == frame.dtype


class Uploader:
    """Uploads frames to a device through two alternating buffers, on a CUDA stream of its own.

    On a CPU, or for frames that are already on a GPU, equal to `Tensor.to`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: list[UploadBuffer | None] = [None, None]
        new_stream: Any = torch.cuda.Stream
        self._stream = new_stream(device) if device.type == "cuda" else None

    def __call__(self, frame: torch.Tensor) -> torch.Tensor:
        """The frame on the device; valid until the second call after this one."""
        if self._stream is None or frame.device.type != "cpu":
            return frame.to(self.device)
        compute = torch.cuda.current_stream(self.device)
        buffer, last = self._buffers
        if last is not None:
            last.read.record(compute)  # all kernels that read it are queued by now
        if buffer is None or not buffer.fits(frame):
            buffer = UploadBuffer(frame, self.device)
        buffer.sent.synchronize()  # upload of two frames ago: the host may overwrite the buffer
        buffer.pinned.copy_(frame)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(buffer.read)
            buffer.resident.copy_(buffer.pinned, non_blocking=True)
            buffer.sent.record(self._stream)
        compute.wait_event(buffer.sent)
        self._buffers = [last, buffer]
        return buffer.resident
