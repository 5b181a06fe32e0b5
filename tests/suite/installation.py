"""An installation of its own for a test: the services, agents, and the command line that talks to them."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PENSTOCK = (sys.executable, "-m", "penstock.cli")
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 60
COMMAND_SECONDS_MAX = 120


@dataclass(frozen=True)
class Background:
    """A process that runs beside the test, with its output in a file."""

    process: subprocess.Popen[bytes]
    output: Path

    def wait_for(self, words: str) -> None:
        """Wait until its output holds these words."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while words not in self.text:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.text}"
            assert time.monotonic() < deadline, f"{words!r} did not appear:\n{self.text}"
            time.sleep(0.02)

    def wait_for_end(self, around: Callable[[], str]) -> None:
        """Wait until it ends well; `around` tells what happened around it, should it not."""
        try:
            code: int | None = self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            code = None
        assert code == 0, f"{code}:\n{self.text}\n{around()}"

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def end(self) -> int:
        """Send SIGTERM and wait for its end."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(STOP_SECONDS_MAX)


class Installation:
    """Services on one database, with everything in one directory."""

    def __init__(self, directory: Path, port_base: int, environ: Mapping[str, str]) -> None:
        self.directory = directory
        self.port_base = port_base
        addresses = zip(("FLOW_RUN", "QUEUE", "LOG"), range(port_base, port_base + 3), strict=True)
        self.environ = {
            **clean_environment(),
            "HOME": str(directory),
            "PENSTOCK_DATA_DIR": str(directory / "data"),
            **{f"PENSTOCK_{name}_ADDRESS": f"127.0.0.1:{port}" for name, port in addresses},
            **environ,
        }

    def penstock(self, *args: str, environ: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """Run the command to its end."""
        return subprocess.run(
            [*PENSTOCK, *args],
            env={**self.environ, **(environ or {})},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )

    def succeed(self, *args: str) -> str:
        """Run the command, which must succeed, and return what it prints."""
        done = self.penstock(*args)
        assert done.returncode == 0, f"penstock {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def documents(self, *args: str) -> list[dict[str, Any]]:
        """Run the command with --json, and return what it prints: a document per line."""
        return [json.loads(line) for line in self.succeed(*args, "--json").splitlines()]

    def background(self, name: str, *args: str) -> AbstractContextManager[Background]:
        """Run the command beside the test; it is ended with the block."""
        return self.running(name, *PENSTOCK, *args, environ=self.environ)

    @contextmanager
    def running(self, name: str, *command: str, environ: Mapping[str, str]) -> Iterator[Background]:
        """Run any command so."""
        output = self.directory / f"{name}.out"
        with output.open("wb") as file:
            process = subprocess.Popen(command, env=environ, cwd=self.directory, stdout=file, stderr=subprocess.STDOUT)
        started = Background(process, output)
        try:
            yield started
        finally:
            if process.poll() is None:
                started.end()

    @contextmanager
    def agent(self, *args: str, name: str = "agent") -> Iterator[Background]:
        """An agent that is connected."""
        with self.background(name, "agent", "start", "--name", name, *args) as agent:
            agent.wait_for("is connected")
            yield agent

    def flow(self, name: str, source: str) -> None:
        """Write a file of flows and register them."""
        (self.directory / f"{name}.py").write_text(source)
        self.succeed("register", f"{name}.py", "--project", "tests")


@contextmanager
def installed(
    directory: Path, database_url: str, environ: Mapping[str, str] | None = None
) -> Iterator[tuple[Installation, Background]]:
    """An installation whose services serve, and the process that keeps them."""
    here = Installation(directory, four_free_ports(), environ or {})
    start = ("server", "start", "--database", database_url, "--port-base", str(here.port_base))
    with here.background("server", *start) as server:
        server.wait_for("is ready")
        yield here, server


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that would tell Penstock or OpenTelemetry what to do."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "OTEL_"))}


def four_free_ports() -> int:
    """The first of four ports in a row that nobody listens on, below those that the kernel gives to callers.

    A caller that tries such a port again and again while nobody listens may be given it, and be connected to itself.
    """
    for base in range(20_000 + os.getpid() % 3_000 * 4, 32_768, 4):
        with ExitStack() as stack:
            try:
                for port in range(base, base + 4):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return base
    raise AssertionError("no four free ports in a row")


def descendants(pid: int) -> dict[int, str]:
    """The processes that this one has started, directly or not, with their command lines."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    children: dict[int, dict[int, str]] = {}
    for line in listed.splitlines():
        child, parent, command = line.split(None, 2)
        children.setdefault(int(parent), {})[int(child)] = command
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        for child, command in children.get(todo.pop(), {}).items():
            found[child] = command
            todo.append(child)
    return found
