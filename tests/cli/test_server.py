"""`penstock server`."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from penstock.cli.server import _without_password
from tests.cli.command import penstock, running
from tests.cli.conftest import RunningServer, free_port_base
from tests.cli.processes import all_ended, children_of, kill
from tests.client.scripted import ScriptedServices

MODULES = {"penstock.flow_run", "penstock.queue", "penstock.log", "penstock.keeper"}


@pytest.mark.slow
async def test_four_services_serve_and_leave_nothing_behind(tmp_path: Path) -> None:
    """The server starts four services, says where they are, and on SIGTERM stops them, the last started first."""
    base = str(free_port_base())
    options = ("--data-dir", str(tmp_path / "new" / "data"), "--port-base", base)
    async with running("server", "start", *options) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "Commands find it with" not in lines[-1]:
            lines.append((await process.stdout.readline()).decode())
        children = children_of(process.pid)
        status = await penstock("server", "status", "--port-base", base, "--json")
        second = await penstock("server", "start", *options)

        process.send_signal(signal.SIGTERM)
        out, err = await process.communicate()

    assert MODULES == set(children)
    assert f"flow_run 127.0.0.1:{base}, queue 127.0.0.1:{int(base) + 1}" in lines[-2]
    assert f"database sqlite:///{tmp_path / 'new' / 'data' / 'penstock.db'}" in lines[-2]
    document = json.loads(status.out)
    assert (0, True) == (status.code, document["serving"])
    assert ["flow_run", "queue", "log", "keeper"] == [each["name"] for each in document["services"]]
    assert (1, "", 1) == (second.code, second.out, len(second.err.splitlines()))
    assert f"Cannot listen on 127.0.0.1:{int(base) + 2}" in second.err
    assert (0, b"") == (process.returncode, err)
    stopped = [line.split(" ")[0] for line in out.decode().splitlines() if line.endswith("has stopped")]
    assert ["keeper", "queue", "flow_run", "log"] == stopped
    assert await all_ended(list(children.values()))


@pytest.mark.slow
async def test_a_service_that_is_killed_comes_back(server: RunningServer) -> None:
    """A service that crashes is started again, and serves again."""
    before = children_of(server.pid)["penstock.queue"]

    kill(before, signal.SIGKILL)
    async with asyncio.timeout(30):
        while (await penstock("server", "status", "--port-base", str(server.port_base))).code:
            pass

    assert before != children_of(server.pid)["penstock.queue"]


@pytest.mark.slow
async def test_a_server_that_is_killed_takes_its_services_along(server: RunningServer) -> None:
    """Even SIGKILL of the server leaves no process behind."""
    children = children_of(server.pid)

    kill(server.pid, signal.SIGKILL)

    assert MODULES == set(children)
    assert await all_ended(list(children.values()))


async def test_without_services_the_status_says_so(unused_tcp_port: int) -> None:
    """Services that do not answer are shown as such, with exit code 1."""
    base = str(min(unused_tcp_port, 65_532))

    shown = await penstock("server", "status", "--port-base", base)
    document = await penstock("server", "status", "--port-base", base, "--json")

    assert (1, 4) == (shown.code, shown.out.count("no answer"))
    assert [False] * 4 == [each["serving"] for each in json.loads(document.out)["services"]]


async def test_status_asks_where_the_settings_say(services: object, unused_tcp_port: int) -> None:
    """Without options the status is that of the services that other commands would call."""
    address = services.address  # type: ignore[attr-defined]

    shown = await penstock("server", "status", "--json", PENSTOCK_ADDRESS=address)

    document = json.loads(shown.out)
    assert {address} == {each["address"] for each in document["services"]}
    assert all(each["serving"] for each in document["services"] if each["name"] in ("flow_run", "log"))


async def test_status_takes_no_service_for_another() -> None:
    """A process that answers where the queue should, but does not serve it, is not shown as the queue."""
    async with ScriptedServices(only=("FlowService",)) as other:
        shown = await penstock("server", "status", "--json", PENSTOCK_QUEUE_ADDRESS=other.address)

    (queue,) = [each for each in json.loads(shown.out)["services"] if each["name"] == "queue"]
    assert (1, False, "another service answers") == (shown.code, queue["serving"], queue["detail"])


async def test_a_database_that_cannot_be_prepared_ends_the_start(unused_tcp_port: int) -> None:
    """When the database cannot be used, its own words are shown and nothing is started."""
    url = f"postgresql+psycopg://u:s3cret@127.0.0.1:{unused_tcp_port}/nothing"

    failed = await penstock("server", "start", "--database", url, "--port-base", str(free_port_base()))

    assert 1 == failed.code
    assert failed.err.startswith("penstock: The database could not be prepared:\n  ")
    assert "s3cret" not in failed.out + failed.err


async def test_an_open_server_needs_a_token(tmp_path: Path) -> None:
    """Listening to the world without a token is refused before anything is started."""
    refused = await penstock("server", "start", "--host", "0.0.0.0", "--data-dir", str(tmp_path / "data"))

    assert 2 == refused.code
    assert "PENSTOCK_TOKEN is not set" in refused.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://u:s3c@ret@host/db", "postgresql+psycopg://u:***@host/db"),
        (
            "postgresql+psycopg://host/db?user=u&password=s3cret&x=1",
            "postgresql+psycopg://host/db?user=u&password=***&x=1",
        ),
        ("sqlite:////var/lib/penstock.db", "sqlite:////var/lib/penstock.db"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    """The address of the database is shown without its password."""
    assert shown == _without_password(url)
