"""The real command on a real terminal, as a person has it."""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator

from tests.cli.command import environment

# Owns the far side of a terminal, and hands on what is typed and what is shown.
_AT_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"

CTRL_C = "\x03"
CTRL_Z = "\x1a"

_STYLES = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A command on a terminal: what it has shown, and what is typed at it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.shown = ""
        self._process = process

    async def until(self, words: str, times: int = 1) -> None:
        """Wait until these words have been shown so often."""
        async with asyncio.timeout(30):
            while self.shown.count(words) < times:
                assert await self._more(), f"the command ended without saying {words!r}:\n{self.shown}"

    def type(self, keys: str) -> None:
        """Press these keys."""
        assert self._process.stdin is not None
        self._process.stdin.write(keys.encode())

    async def ended(self) -> int:
        """The exit code, once the command has ended; everything it showed is in `shown`."""
        async with asyncio.timeout(30):
            while await self._more():
                pass
            return await self._process.wait()

    async def _more(self) -> bool:
        assert self._process.stdout is not None
        more = await self._process.stdout.read(4096)
        self.shown += _STYLES.sub("", more.decode().replace("\r\n", "\n"))
        return bool(more)


@contextlib.asynccontextmanager
async def at_a_terminal(*args: str, **variables: str) -> AsyncIterator[Terminal]:
    """`penstock args…` on a terminal while it runs; it does not outlive the block, because its terminal does not."""
    async with program_at_a_terminal(sys.executable, "-m", "penstock.cli", *args, **variables) as terminal:
        yield terminal


@contextlib.asynccontextmanager
async def program_at_a_terminal(*command: str, **variables: str) -> AsyncIterator[Terminal]:
    """The same for any program, such as a shell."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _AT_A_TERMINAL, *command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(**{"TERM": os.environ.get("TERM", "xterm"), **variables}),
    )
    try:
        yield Terminal(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
