"""The terminal of the person who executes a run without an agent: for `breakpoint()` and `input()`.

What the flow prints is recorded as always. Only a question and the debugger, who wait for an answer, go to the terminal
directly. Reading from it needs no place in its foreground, because the body leads a session of its own.
"""

import builtins
import os
import sys
import time
from typing import Any, Final, TextIO

from penstock.runtime.settings import environment

# What was printed before a question is shown by way of the log, and should stand above the question.
SHOWN_SECONDS: Final = 0.3


def attach(reading: int, writing: int) -> None:
    """Let this process ask at that terminal. Programs that it starts do not inherit it."""
    for descriptor in (reading, writing):
        os.set_inheritable(descriptor, False)
    terminal = _Terminal(
        os.fdopen(reading, encoding="utf-8", errors="surrogateescape"),
        os.fdopen(writing, "w", encoding="utf-8", errors="backslashreplace", buffering=1),
    )
    sys.stdin = terminal.reader
    sys.breakpointhook = terminal.debug
    builtins.input = terminal.ask


class _Terminal:
    def __init__(self, reader: TextIO, writer: TextIO) -> None:
        self.reader = reader
        self._writer = writer

    def ask(self, prompt: object = "", /) -> str:
        """What `input` does; its own prompt would stay in the log until its line has ended."""
        self._let_output_be_shown()
        self._writer.write(str(prompt))
        self._writer.flush()
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
