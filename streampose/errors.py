"""Every error that streampose raises on purpose, with the exit code the command line gives it.

    StreamposeError          1  anything that has no better place below
    |- UsageError            2  an option, a recipe or an argument that cannot be
    |- SourceError           3  a source that cannot be opened or ended in error
    |- ModelError            4  a model, detector, checkpoint or engine bundle
    |- OutputError           5  an endpoint in use, a full disk, a file that cannot be written
    |- StreamError           3  a stream of keypoints that cannot be received
    |  |- NoPublisherError   3  nobody publishes at the endpoint, or no more
    |  |- KeyRefusedError    3  the publisher does not take our key, or is not the one that our key is for
    |  |- EncryptionError    3  one side has keys and the other has none
    |  `- SchemaError        3  the publisher speaks another version of the protocol
    `- MissingExtraError     1  a package that an extra of ours installs is not there

The message is one line: what is wrong, where, and what to do about it. It never holds a credential.
"""

from __future__ import annotations

from typing import ClassVar


class StreamposeError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class UsageError(StreamposeError):
    """An option, a recipe key or an argument is not what it must be."""

    exit_code = 2


class SourceError(StreamposeError):
    """A source cannot be opened, or ended in an error rather than at its end."""

    exit_code = 3


class ModelError(StreamposeError):
    """A model, a detector, a checkpoint or an engine bundle is missing, damaged or of another kind."""

    exit_code = 4


class OutputError(StreamposeError):
    """Results cannot be written or published: endpoint in use, disk full, folder missing."""

    exit_code = 5


class StreamError(StreamposeError):
    """A stream of keypoints cannot be received."""

    exit_code: ClassVar[int] = 3


class NoPublisherError(StreamError):
    """Nothing that publishes answers at the endpoint, or it has fallen silent."""


class KeyRefusedError(StreamError):
    """The publisher's allow list lacks our key, or the publisher is not the one that our key file names."""


class EncryptionError(StreamError):
    """The publisher wants a key and we have none, or we have one and it offers no encryption."""


class SchemaError(StreamError):
    """The publisher's messages are of a schema that this version does not read."""


class MissingExtraError(StreamposeError):
    """A package is missing that belongs to one of our extras."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'streampose[{extra}]'")
        self.package = package
        self.extra = extra
