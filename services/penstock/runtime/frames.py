"""Messages on a stream of bytes: each is its length and then itself. An empty one is a message as well."""

import struct
from collections.abc import Iterator
from typing import Final

_LENGTH: Final = struct.Struct("!I")


def framed(message: bytes) -> bytes:
    """What to send for a message."""
    return _LENGTH.pack(len(message)) + message


class Frames:
    """Finds the messages in what arrives, however it was cut on its way."""

    def __init__(self) -> None:
        self._arrived = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that these bytes complete."""
        self._arrived += data
        while len(self._arrived) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._arrived)[0]
            if len(self._arrived) < end:
                return
            message, self._arrived = self._arrived[_LENGTH.size : end], self._arrived[end:]
            yield message
