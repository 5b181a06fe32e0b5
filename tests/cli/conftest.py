"""Scripted services for commands to speak to, and the real ones."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flowrun.v1 import flow_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from flowrun.v1 import flow_service_pb2 as flow_verbs
from penstock.cli.suite import free_ports
from tests.cli.command import line_with, running
from tests.client.scripted import ScriptedServices, a_flow_run


@pytest.fixture
async def services() -> AsyncIterator[ScriptedServices]:
    """Services that answer as the test tells them to."""
    async with ScriptedServices() as scripted:
        yield scripted


@pytest.fixture
def river(services: ScriptedServices) -> ScriptedServices:
    """Services that know a flow and create runs of it."""
    flow = flow_pb2.Flow(flow_id="flow", flow_group_id="group", name="river", version=3)
    services.scripts["LookUpFlow"] = lambda *_: flow_verbs.LookUpFlowResponse(flow=flow)
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)
    return services


@dataclass(frozen=True)
class RunningServer:
    """A real `penstock server start`: its process, its ports, and what tells commands where it is."""

    pid: int
    port_base: int
    data_dir: Path
    variables: dict[str, str]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """The four services on an embedded database, as `penstock server start` runs them."""
    port_base, data_dir = free_port_base(), tmp_path / "data"
    async with running("server", "start", "--data-dir", str(data_dir), "--port-base", str(port_base)) as process:
        await line_with("Penstock is ready", process)
        variables = dict(re.findall(r"(PENSTOCK_\w+)=(\S+)", await line_with("Commands find it with", process)))
        yield RunningServer(process.pid, port_base, data_dir, variables)


def free_port_base() -> int:
    """Four ports in a row that nobody listens on."""
    import socket

    for base in iter(lambda: free_ports("127.0.0.1")["log"], 0):
        try:
            for port in range(base, base + 4):
                socket.create_server(("127.0.0.1", port)).close()
        except (OSError, OverflowError):
            continue
        return base
    raise AssertionError("unreachable")
