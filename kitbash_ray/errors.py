"""Every error that Kitbash raises on purpose, in one tree.

    KitbashError
    ├── ConfigError           a setting is unknown or malformed
    ├── CartridgeError        a cartridge or a document cannot be read; names file and line
    │   └── LibraryChanged    ... because it is being edited
    ├── ModelError            a model file is missing, damaged or of the wrong kind
    ├── InvalidQuery          a question that cannot be asked
    ├── StoreError            Redis cannot be reached or refuses
    ├── LayerError            a layer could not do its work
    │   ├── LayerTimeout      ... in its time
    │   └── LayerUnavailable  ... because its process or device is gone
    │       └── LayerBusy     ... or has too much to do
    ├── ClusterError          the cluster cannot be started, found or stopped
    └── ClientError           the front door refused a request, or is not there
        ├── NotRunning
        ├── Interrupted       ... in the middle of a stream, and said why
        └── Unauthorized

The message comes first and is one sentence that says what to do next; anything else is
keyword-only with a default, so that each of them survives pickling between processes.
Not here: programming errors, which stay Python's own.
"""

from __future__ import annotations


class KitbashError(Exception):
    """Base of all errors that are meant to be read by a person."""

    #: What the CLI exits with (cli/exits.py names the numbers).
    exit_code: int = 1


class ConfigError(KitbashError):
    """A setting is unknown or malformed."""

    exit_code = 2


class CartridgeError(KitbashError):
    """A cartridge or an imported document cannot be used; the message names file and line."""

    exit_code = 3


class LibraryChanged(CartridgeError):
    """The cartridges were edited while they were being indexed; trying again helps."""


class ModelError(KitbashError):
    """A model file is missing, damaged or of a kind that this layer cannot use."""

    exit_code = 4


class InvalidQuery(KitbashError):
    """A question that cannot be asked: empty, too long, or with impossible limits."""

    exit_code = 2


class StoreError(KitbashError):
    """Redis cannot be reached, or refuses what is asked of it."""

    exit_code = 5


class LayerError(KitbashError):
    """A layer could not do its work."""


class LayerTimeout(LayerError):
    """A layer took longer than its timeout."""


class LayerUnavailable(LayerError):
    """The process or the device behind a layer is gone."""


class LayerBusy(LayerUnavailable):
    """A layer lives, and has more to do than it takes on."""


class ClusterError(KitbashError):
    """The cluster cannot be started, found or stopped."""

    exit_code = 6


class ClientError(KitbashError):
    """The front door refused a request. `status` is the HTTP status, 0 if there was no reply."""

    exit_code = 7

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        return (_client_error, (type(self), str(self), self.status))


class NotRunning(ClientError):
    """Nothing answers at the front door's address."""

    exit_code = 6


class Interrupted(ClientError):
    """The front door had to end a stream before its end, and said why."""


class Unauthorized(ClientError):
    """The front door does not know the token."""


def _client_error(kind: type[ClientError], message: str, status: int) -> ClientError:
    return kind(message, status=status)
