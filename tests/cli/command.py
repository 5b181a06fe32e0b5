"""The real command, as a process of its own."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finished:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def environment(**variables: str) -> dict[str, str]:
    """The environment of a user who set nothing but these."""
    theirs = ("PENSTOCK_", "OTEL_", "COLUMNS", "LINES")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    paths = os.pathsep.join(str(ROOT / path) for path in ("services", "gen/python"))
    return {**inherited, "PYTHONPATH": paths, "NO_COLOR": "1", **variables}


async def started(
    *args: str, closed: int | None = None, cwd: Path | None = None, **variables: str
) -> asyncio.subprocess.Process:
    """Start `penstock args…`; one of its standard descriptors may be `closed`, as a shell does with `0<&-`."""
    closing = () if closed is None else ("/bin/sh", "-c", f'exec "$@" {closed}{"<" if closed == 0 else ">"}&-', "sh")
    return await asyncio.create_subprocess_exec(
        *(*closing, sys.executable, "-m", "penstock.cli", *args),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env=environment(**variables),
    )


async def penstock(*args: str, closed: int | None = None, cwd: Path | None = None, **variables: str) -> Finished:
    """Run `penstock args…` to its end. Errors never come as a traceback."""
    async with running(*args, closed=closed, cwd=cwd, **variables) as process:
        out, err = await process.communicate()
    assert process.returncode is not None
    assert "Traceback" not in err.decode(), err.decode()
    return Finished(process.returncode, out.decode(), err.decode())


@contextlib.asynccontextmanager
async def running(
    *args: str, closed: int | None = None, cwd: Path | None = None, **variables: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`penstock args…` while it runs; it does not outlive the block."""
    process = await started(*args, closed=closed, cwd=cwd, **variables)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def line_with(words: str, process: asyncio.subprocess.Process) -> str:
    """The next line on standard output that holds these words."""
    assert process.stdout is not None
    async for line in process.stdout:
        if words in line.decode():
            return line.decode()
    raise AssertionError(f"the command ended without saying {words!r}")
