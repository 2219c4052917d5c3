"""Exception classes of the package: one base class, one class per kind of error.

A message states what was wrong, what was expected and what to do.
"""

from __future__ import annotations


class VosError(Exception):
    """Base class of the package's errors; the command line prints them without a traceback."""


class InputError(VosError, ValueError):
    """A frame, mask, object id or argument is invalid; no state has changed."""


class ConfigError(VosError, ValueError):
    """A configuration value is out of range, or two values exclude each other."""


class SourceError(VosError):
    """A video, image folder or camera cannot be opened, or ended prematurely."""


class OutputError(VosError):
    """A result cannot be written to the requested path."""


class StorageError(VosError):
    """A bucket, or another file system that is reached by an address, cannot be reached or refuses
    what is asked of it."""


class WeightsError(VosError):
    """A weights file is missing, corrupt, of another model, or does not match its hash."""


class DeviceError(VosError):
    """The requested device does not exist, or does not support the requested operation."""


class CapacityError(VosError):
    """An engine's memory budget is exhausted (stream, object or frame); no state has changed."""


class DependencyError(VosError):
    """An optional package that the request needs is not installed."""


class StateError(VosError):
    """A stream cannot continue here: other model or weights, corrupt file, other process."""


class TrainingError(VosError):
    """Training cannot continue: a loss or a gradient is not finite."""


class ServerError(VosError):
    """A server rejected a request, or cannot be reached.

    code   the server's error code
    frame  index of the frame that the error refers to, or None
    """

    def __init__(self, code: str, message: str, frame: int | None = None) -> None:
        super().__init__(message)
        self.code, self.frame = code, frame
