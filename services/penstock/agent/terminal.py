"""The terminal of the person who executes a run here, and its line to the code of that run.

The code never has the terminal itself, which would stay with it when the command is suspended or killed, and would take
from the shell what is typed there then. It has a line to the command instead: what arrives is shown, an empty message
asks for what is typed next, and that is read as long as the terminal's foreground is ours. The line ends with us.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Final

from penstock.runtime.frames import Frames, framed

# How often to look whether a command that was put into the background is back, while somebody waits for what is typed.
GLANCE_SECONDS: Final = 0.5
_CHUNK_BYTES: Final = 65_536


def has_foreground(descriptor: int | None) -> bool:
    """Whether that is a terminal, and what is typed there is meant for this process.

    It is not while a shell keeps this process in the background, nor at a terminal that controls other processes. No
    descriptor, or a closed one, is no terminal.
    """
    if descriptor is None:
        return False
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except (OSError, ValueError, OverflowError):
        return False


def own_terminal() -> "Terminal | None":
    """The terminal whose foreground this process has; None without one.

    What a command prints may go elsewhere, while its errors are still shown at the terminal.
    """
    writing = next((descriptor for descriptor in (2, 1) if os.isatty(descriptor)), None)
    if writing is None or not has_foreground(0):
        return None
    return Terminal(os.dup(0), os.dup(writing))


class Terminal:
    """A terminal, and the lines to those who may ask there. It closes its descriptors."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._lines: list[_Line] = []
        self._looking: asyncio.TimerHandle | None = None
        self._listening = False

    @contextlib.contextmanager
    def lent(self) -> Iterator[int]:
        """A new line to here, for a process that is started within the block and inherits this descriptor."""
        ours, theirs = socket.socketpair()
        self._lines.append(_Line(self, ours))
        with theirs:
            yield theirs.fileno()

    def close(self) -> None:
        """Hang up."""
        for line in list(self._lines):
            line.close()
        for descriptor in (self._reading, self._writing):
            os.close(descriptor)

    def show(self, text: bytes) -> None:
        """Write something there. A terminal that is gone shows nothing more."""
        with contextlib.suppress(OSError):
            while text:
                text = text[os.write(self._writing, text) :]

    def look(self) -> None:
        """Begin or cease to read what is typed, as it is wanted and meant for us."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        wanted = any(line.asks for line in self._lines)
        self._listen(wanted and has_foreground(self._reading))
        if wanted and not self._listening:
            self._looking = asyncio.get_running_loop().call_later(GLANCE_SECONDS, self._glance)

    def hung_up(self, line: "_Line") -> None:
        """Forget a line that is closed."""
        self._lines.remove(line)
        self.look()

    def _glance(self) -> None:
        if os.isatty(self._reading):
            self.look()
            return
        # The terminal was closed, and we live on.
        for line in [line for line in self._lines if line.asks]:
            line.close()

    def _listen(self, listening: bool) -> None:
        loop = asyncio.get_running_loop()
        if listening and not self._listening:
            loop.add_reader(self._reading, self._typed)
        elif self._listening and not listening:
            loop.remove_reader(self._reading)
        self._listening = listening

    def _typed(self) -> None:
        # Between two looks the command may have been suspended, and continued in the background.
        if not has_foreground(self._reading):
            self.look()
            return
        asking = next(line for line in self._lines if line.asks)
        try:
            typed = os.read(self._reading, _CHUNK_BYTES)
        except OSError:
            asking.close()
            return
        asking.answer(typed)
        self.look()


class _Line:
    """A line to the code of a run."""

    def __init__(self, terminal: Terminal, connection: socket.socket) -> None:
        self.asks = False
        self._terminal = terminal
        self._connection = connection
        self._frames = Frames()
        connection.setblocking(False)
        asyncio.get_running_loop().add_reader(connection, self._hear)

    def answer(self, typed: bytes) -> None:
        """Hand over what was typed; nothing says that the end of input was."""
        self.asks = False
        # One line at a time is asked for, and there is always room for it.
        with contextlib.suppress(OSError):
            self._connection.sendall(framed(typed))

    def close(self) -> None:
        self.asks = False
        asyncio.get_running_loop().remove_reader(self._connection)
        self._connection.close()
        self._terminal.hung_up(self)

    def _hear(self) -> None:
        try:
            said = self._connection.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self.close()
            return
        for message in self._frames.feed(said):
            if message:
                self._terminal.show(message)
            else:
                self.asks = True
                self._terminal.look()
