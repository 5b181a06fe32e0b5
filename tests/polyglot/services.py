"""A real flow-run service on a database and a port of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STOP_SECONDS_MAX: Final = 30


class NotServing(Exception):
    """The service ended before it listened. The text is what it said."""


@dataclass(frozen=True, slots=True)
class Service:
    """Where the service is reached, and with what."""

    address: str
    token: str


@contextmanager
def flow_run_service(directory: Path, *, token: str) -> Iterator[Service]:
    """Start the service with everything in a new directory; it is ended with the block."""
    directory.mkdir()
    url = f"sqlite:///{directory / 'penstock.db'}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "OTEL_"))}
    environ = {**clean, "PENSTOCK_DATABASE": url, "PENSTOCK_PORT": "0", "PENSTOCK_TOKEN": token}
    subprocess.run([sys.executable, "-m", "penstock.storage.migrations", url], env=environ, check=True)
    output = directory / "flow_run.log"
    with output.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "penstock.flow_run"], env=environ, stderr=file)
    try:
        yield Service(_address(process, output), token)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _address(process: "subprocess.Popen[bytes]", output: Path) -> str:
    """The address that the service says it listens on."""
    while not (listening := re.search(r"listens on (\S+)\n", output.read_text())):
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        raise NotServing(output.read_text())
    return listening[1]
