"""The terminal of the person who executes a run without an agent: for `breakpoint()` and `input()`.

What the flow prints is recorded as always. Only a question and the debugger, who wait for an answer, go to the terminal
directly: by a line to the command, which alone reads what is typed. When the command is gone nobody can be asked any
more, and whoever asks, or waits for an answer, fails.
"""

import builtins
import io
import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from penstock.runtime.frames import Frames, framed
from penstock.runtime.settings import environment

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

# What was printed before a question is shown by way of the log, and should stand above the question.
SHOWN_SECONDS: Final = 0.3
_CHUNK_BYTES: Final = 65_536


class TerminalGone(EOFError):
    """Nobody sits at the terminal any more."""

    def __init__(self) -> None:
        super().__init__("Nobody can be asked any more: the command that executed this run has left its terminal.")


def attach(descriptor: int) -> None:
    """Let this process ask at the terminal by that line. Programs that it starts do not inherit it."""
    os.set_inheritable(descriptor, False)
    line = _Line(socket.socket(fileno=descriptor))
    terminal = _Terminal(
        io.TextIOWrapper(io.BufferedReader(line), encoding="utf-8", errors="surrogateescape"),
        io.TextIOWrapper(line, encoding="utf-8", errors="backslashreplace", write_through=True),
    )
    sys.stdin = terminal.reader
    sys.breakpointhook = terminal.debug
    builtins.input = terminal.ask


class _Line(io.RawIOBase):
    """What is typed at the terminal, asked for whenever it is read; and what is to be shown there."""

    name = "<terminal>"

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._frames = Frames()
        self._typed = b""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer)
        if not self._typed:
            self._send(b"")
            self._typed = self._answer()
        size = min(len(view), len(self._typed))
        view[:size], self._typed = self._typed[:size], self._typed[size:]
        return size

    def write(self, text: "ReadableBuffer", /) -> int:
        message = bytes(text)
        if message:  # nothing to show would ask
            self._send(message)
        return len(message)

    def _send(self, message: bytes) -> None:
        try:
            with self._sending:
                self._connection.sendall(framed(message))
        except OSError as error:
            raise TerminalGone from error

    def _answer(self) -> bytes:
        while True:
            try:
                arrived = self._connection.recv(_CHUNK_BYTES)
            except OSError as error:
                raise TerminalGone from error
            if not arrived:
                raise TerminalGone
            for answer in self._frames.feed(arrived):
                return answer


class _Terminal:
    def __init__(self, reader: io.TextIOWrapper, writer: io.TextIOWrapper) -> None:
        self.reader = reader
        self._writer = writer

    def ask(self, prompt: object = "", /) -> str:
        """What `input` does; its own prompt would stay in the log until its line has ended."""
        self._let_output_be_shown()
        self._writer.write(str(prompt))
        answer = self.reader.readline()
        if not answer:
            raise EOFError("EOF when reading a line")
        return answer.removesuffix("\n")

    def debug(self, *args: Any, **kwargs: Any) -> object:
        """What `breakpoint` does, unless the author chose something else by PYTHONBREAKPOINT."""
        if environment().get("PYTHONBREAKPOINT"):
            return sys.__breakpointhook__(*args, **kwargs)  # noqa: T100 - the author's own choice
        import pdb  # noqa: T100 - a debugger is what was asked for; here, because hardly any run needs it

        self._let_output_be_shown()
        pdb.Pdb(stdin=self.reader, stdout=self._writer).set_trace(sys._getframe(1))
        return None

    def _let_output_be_shown(self) -> None:
        sys.stdout.flush()
        time.sleep(SHOWN_SECONDS)
