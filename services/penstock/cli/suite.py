"""The four services as child processes: started in order, kept running, stopped in order."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from signal import SIGKILL, SIGTERM, Signals
from typing import Final

from penstock.cli.health import SERVED, probe
from penstock.runtime.clock import SystemClock
from penstock.runtime.settings import PREFIX, joined

START_SECONDS_MAX: Final = 30.0
STOP_SECONDS_MAX: Final = 20.0
HURRIED_SECONDS_MAX: Final = 2.0
PROBE_SECONDS: Final = 0.05
RESTART_SECONDS_FIRST: Final = 0.5
RESTART_SECONDS_MAX: Final = 10.0
QUICK_SECONDS: Final = 10.0
QUICK_CRASHES_MAX: Final = 5
LINES_KEPT: Final = 200
LINE_BYTES_MAX: Final = 64 * 1024

# In the order of starting: what hands out work comes after all that work needs. Ports are counted from the base.
SERVICES: Final[Mapping[str, int]] = {"log": 2, "flow_run": 0, "queue": 1, "keeper": 3}

# Shows a line that a child wrote: the child's name, then the line.
Say = Callable[[str, str], None]


class SuiteFailed(Exception):
    """The services cannot be started, or not be kept running. The text is for whoever started them."""

    def __init__(self, text: str, lines: Sequence[str] = ()) -> None:
        super().__init__("\n".join([text, *(f"  {line}" for line in lines)]))


def ports_from(base: int) -> dict[str, int]:
    """The port of each service."""
    return {name: base + offset for name, offset in SERVICES.items()}


def free_ports(host: str) -> dict[str, int]:
    """A port for each service that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(_listening(host, 0)) for _ in SERVICES]
        return {name: each.getsockname()[1] for name, each in zip(SERVICES, listening, strict=True)}


class Child:
    """A process that ends with this one, whose output is shown line by line."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, say: Say) -> None:
        self.name = name
        self.began = SystemClock().monotonic()
        self._last_lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._process = process
        self._reading = asyncio.create_task(self._read(say))

    @classmethod
    async def start(cls, name: str, module: str, *args: str, environ: Mapping[str, str], say: Say) -> "Child":
        """Start `python -m module`."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "penstock.cli.child", str(os.getpid()), module, *args),
            # Elsewhere than on Linux, the end of its input is how a child learns that its parent is gone.
            stdin=subprocess.DEVNULL if sys.platform == "linux" else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environ, "PYTHONUNBUFFERED": "1"},
            # Ctrl-C reaches the parent alone, which then stops its children in order.
            start_new_session=True,
        )
        return cls(name, process, say)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    @property
    def age_seconds(self) -> float:
        """How long ago it was started."""
        return SystemClock().monotonic() - self.began

    def lines(self, count_max: int = LINES_KEPT) -> Sequence[str]:
        """The last lines that it wrote."""
        return tuple(self._last_lines)[-count_max:]

    async def end(self) -> int:
        """Wait until it ends by itself and all its output was shown; return its exit code, negative for a signal."""
        code = await self._process.wait()
        # A child of its own may hold on to the pipe.
        await asyncio.wait({self._reading}, timeout=1)
        return code

    async def stop(self, seconds_max: float) -> None:
        """End it: SIGTERM, and SIGKILL when that takes too long."""
        self.signal(SIGTERM)
        try:
            async with asyncio.timeout(seconds_max):
                await self._process.wait()
        except TimeoutError:
            self.signal(SIGKILL)
            await self._process.wait()
        await asyncio.wait({self._reading}, timeout=1)
        self._reading.cancel()

    def signal(self, number: Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _read(self, say: Say) -> None:
        assert self._process.stdout is not None
        async for line in _lines_of(self._process.stdout):
            self._last_lines.append(line)
            # Who cannot be shown a line any more must not stop the reading: a child that finds its pipe full freezes.
            with contextlib.suppress(OSError):
                say(self.name, line)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the services of one suite and their database are, and with what environment they are started."""

    host: str
    ports: Mapping[str, int]
    database_url: str
    environ: Mapping[str, str]

    def address(self, name: str) -> str:
        """Where a service is reached from this machine."""
        return joined({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.ports[name])  # noqa: S104

    def client_environ(self) -> dict[str, str]:
        """What tells clients and agents where these services are."""
        return {
            f"{PREFIX}{name.upper()}_ADDRESS": self.address(name) for name in ("flow_run", "queue", "log", "keeper")
        }


class Suite:
    """The four services of one place."""

    def __init__(self, place: Place, say: Say) -> None:
        self.place = place
        self._say = say
        self._children: dict[str, Child] = {}
        self._grace = STOP_SECONDS_MAX

    @property
    def children(self) -> Sequence[Child]:
        """The services that were started so far."""
        return tuple(self._children.values())

    async def start(self) -> None:
        """Bring the database to this version, then start each service and wait until it serves. Raises SuiteFailed."""
        self._demand_free_ports()
        await self._migrate()
        for name in SERVICES:
            self._children[name] = child = await self._spawn(name)
            await self._until_serving(child)

    async def keep(self) -> None:
        """Start again whatever ends, until cancelled. Raises SuiteFailed when one keeps ending at once."""
        keeping = [asyncio.create_task(self._keep(name)) for name in SERVICES]
        try:
            await asyncio.gather(*keeping)
        finally:
            for each in keeping:
                each.cancel()
            await asyncio.wait(keeping)

    async def stop(self) -> None:
        """End all services, the last started first. Nothing may be keeping them any more."""
        for name in reversed(tuple(SERVICES)):
            if child := self._children.get(name):
                await child.stop(self._grace)

    def hurry(self) -> None:
        """Give services that are being stopped no more time."""
        self._grace = HURRIED_SECONDS_MAX
        for child in self._children.values():
            child.signal(SIGTERM)

    async def _migrate(self) -> None:
        environ = {**self.place.environ, f"{PREFIX}DATABASE": self.place.database_url}
        child = await Child.start("migrations", "penstock.storage.migrations", environ=environ, say=self._say)
        try:
            code = await child.end()
        except asyncio.CancelledError:
            await child.stop(HURRIED_SECONDS_MAX)
            raise
        if code:
            raise SuiteFailed("The database could not be prepared:", child.lines())

    async def _spawn(self, name: str) -> Child:
        environ = {
            **self.place.environ,
            f"{PREFIX}HOST": self.place.host,
            f"{PREFIX}PORT": str(self.place.ports[name]),
        }
        return await Child.start(name, f"penstock.{name}", environ=environ, say=self._say)

    async def _until_serving(self, child: Child) -> None:
        while not (await probe(self.place.address(child.name), SERVED[child.name])).serving:
            if not child.running:
                code = await child.end()
                raise SuiteFailed(f"The {child.name} service {_ended(code)} as it started:", child.lines())
            if child.age_seconds > START_SECONDS_MAX:
                text = f"The {child.name} service does not serve after {START_SECONDS_MAX:g} s:"
                raise SuiteFailed(text, child.lines())
            await asyncio.sleep(PROBE_SECONDS)

    async def _keep(self, name: str) -> None:
        crashes = 0
        while True:
            child = self._children[name]
            code = await child.end()
            crashes = crashes + 1 if child.age_seconds < QUICK_SECONDS else 1
            if crashes > QUICK_CRASHES_MAX:
                text = f"The {name} service {_ended(code)} {crashes} times in a row and was given up:"
                raise SuiteFailed(text, child.lines())
            pause = min(RESTART_SECONDS_MAX, RESTART_SECONDS_FIRST * 2.0 ** (crashes - 1))
            self._say(name, f"{_ended(code)}; it is started again in {pause:g} s")
            await asyncio.sleep(pause)
            self._children[name] = await self._spawn(name)

    def _demand_free_ports(self) -> None:
        for port in self.place.ports.values():
            try:
                _listening(self.place.host, port).close()
            except OSError as error:
                raise SuiteFailed(
                    f"Cannot listen on {joined(self.place.host, port)}: {error.strerror}. Is a Penstock server running "
                    "already? Choose other ports with --port-base."
                ) from error


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _ended(code: int) -> str:
    return f"was ended by {Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


async def _lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """The lines of a stream. One that is too long comes in pieces."""
    rest = b""
    while chunk := await stream.read(LINE_BYTES_MAX):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line.decode(errors="backslashreplace")
    if rest:
        yield rest.decode(errors="backslashreplace")
