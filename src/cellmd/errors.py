"""Every error a user of cellmd can meet.

    CellmdError
    |- UnsupportedModelError      another architecture, a mixture of experts, an unknown scheme
    |- CheckpointError            the source folder: a file or tensor is missing, misshapen or broken
    |- ContainerError             the .cellmd file
    |  |- NotCellmdError          other magic bytes, or a version this release does not read
    |  |- TruncatedError          the file ends before its tables say it should
    |  |- HeaderError             the JSON header: too large, malformed, a key of the wrong type
    |  |- LayoutError             a range overlaps another, leaves the file, or disagrees with its shape
    |  `- CorruptError            a checksum does not match, or scales are not finite
    |- MediaError                 a picture, sound or film
    |  |- MediaDecodeError        broken, empty, or of no known kind
    |  `- MediaLimitError         beyond the bounds in pixels, seconds or bytes
    |- PromptError                messages the chat template refuses, media without a matching tower
    |- ContextLengthError         prompt and answer do not fit the model's length or the memory
    |- BusyError                  too many answers are waiting already
    |- BackendError               a backend that is missing or cannot run here
    `- ArgumentError              an argument out of its range (also a ValueError)

Each message says what was found, where, and what to do about it.
"""

from __future__ import annotations


class CellmdError(Exception):
    """Base of all errors raised on purpose by cellmd."""


class UnsupportedModelError(CellmdError):
    """The checkpoint or file asks for something this release does not run."""


class CheckpointError(CellmdError):
    """The source checkpoint is incomplete, inconsistent or broken."""


class ContainerError(CellmdError):
    """The .cellmd file cannot be used."""


class NotCellmdError(ContainerError):
    """The file is not a .cellmd file of a version this release reads."""


class TruncatedError(ContainerError):
    """The file ends before its own tables say it should."""


class HeaderError(ContainerError):
    """The JSON header is too large, malformed, or has a key of the wrong type."""


class LayoutError(ContainerError):
    """A byte range overlaps another, leaves the file, or disagrees with its tensor's shape."""


class CorruptError(ContainerError):
    """Stored bytes are damaged: a checksum does not match, or a scale is not a finite number."""


class MediaError(CellmdError):
    """A picture, sound or film cannot be used."""


class MediaDecodeError(MediaError):
    """The medium is broken, empty, or of no known kind."""


class MediaLimitError(MediaError):
    """The medium is larger or longer than the bounds allow."""


class PromptError(CellmdError):
    """The messages cannot be made into a prompt for this model."""


class ContextLengthError(CellmdError):
    """Prompt and answer do not fit into the model's length or into memory."""


class BusyError(CellmdError):
    """As many answers are waiting as may wait, or no more are begun; ask again later."""


class BackendError(CellmdError):
    """A backend is unknown, not installed, or cannot run on this machine."""


class ArgumentError(CellmdError, ValueError):
    """An argument is out of its documented range."""
