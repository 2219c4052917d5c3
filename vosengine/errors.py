"""Every error the engine raises on purpose: one base class, one class per kind of trouble.

A message says what was wrong, what was wanted and what to do.
"""

from __future__ import annotations


class VosError(Exception):
    """Base of all errors raised on purpose; the command line prints it without a traceback."""


class InputError(VosError, ValueError):
    """A frame, mask, object id or argument is not what the call wants; no state has changed."""


class ConfigError(VosError, ValueError):
    """A configuration holds a value outside its range, or two values that exclude each other."""


class SourceError(VosError):
    """A video, image folder or camera cannot be opened, or broke off before its end."""


class OutputError(VosError):
    """A result cannot be written where it was asked for."""


class StorageError(VosError):
    """A bucket, or another file system that is reached by an address, cannot be reached or refuses
    what is asked of it."""


class WeightsError(VosError):
    """A weights file is missing, corrupt, of another model, or does not match its hash."""


class DeviceError(VosError):
    """The device that was asked for does not exist, or cannot do what was asked of it."""


class CapacityError(VosError):
    """An engine's memory budget has no room for another stream, object or frame; no state has
    changed."""


class DependencyError(VosError):
    """A package that was left out at installation is needed for what was asked."""


class StateError(VosError):
    """A stream cannot go on here: another model, other weights, a broken file, another process."""


class TrainingError(VosError):
    """Training cannot go on: a loss or a gradient is no number any more."""


class ServerError(VosError):
    """A server refuses what its client asks, or cannot be reached.

    code   its short name for that
    frame  the frame that it says it of; None: of none
    """

    def __init__(self, code: str, message: str, frame: int | None = None) -> None:
        super().__init__(message)
        self.code, self.frame = code, frame
