"""`penstock server`: run the services, and see how they are."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.failures import EXIT_FAILED, CommandFailed, told_plainly

if TYPE_CHECKING:
    from penstock.cli.health import Health
    from penstock.cli.screen import Screen
    from penstock.cli.suite import Place

PORT_BASE = 4710

app = typer.Typer(name="server", help="Run the services, and see how they are.", no_args_is_help=True)

Host = Annotated[str | None, typer.Option(help="The address to listen on.", show_default="127.0.0.1")]
PortBase = Annotated[
    int, typer.Option(min=1, max=65_532, help="The first of four ports: flow_run, queue, log and keeper.")
]


@app.command("start")
def start(
    database: Annotated[
        str | None,
        typer.Option(
            help="Where the database is, as postgresql+psycopg://…", show_default="SQLite in the data directory"
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="The directory of the embedded database.", show_default="of this user")
    ] = None,
    host: Host = None,
    port_base: PortBase = PORT_BASE,
) -> None:
    """Start the four services and keep them running until SIGTERM or Ctrl-C.

    The database is brought to this version first. A service that ends is started again. A second signal stops the
    services without waiting for calls under way.
    """
    import asyncio

    with told_plainly():
        from penstock.cli.suite import Place, ports_from
        from penstock.runtime.settings import KeeperSettings, environment

        environ = environment()
        for name, value in (("DATABASE", database), ("DATA_DIR", data_dir), ("HOST", host)):
            if value is not None:
                environ[f"PENSTOCK_{name}"] = str(value)
        # What all four are told alike is read, and refused, here once.
        settings = KeeperSettings.load(environ)
        place = Place(settings.host, ports_from(port_base), settings.database_url, environ)
        sys.exit(asyncio.run(_serve(place)))


@app.command("status")
def status(
    host: Host = None,
    port_base: Annotated[int | None, typer.Option(min=1, max=65_532, help="The first of the four ports.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")] = False,
) -> None:
    """Show whether the services answer, and how fast. Exits 0 only if all four are serving."""
    import asyncio

    with told_plainly():
        addresses = _addresses(host, port_base)
        found = asyncio.run(_probe_all(addresses))
    if as_json:
        _print_json(addresses, found)
    else:
        _print_table(addresses, found)
    sys.exit(0 if all(health.serving for health in found) else EXIT_FAILED)


async def _serve(place: "Place") -> int:
    from penstock.cli.screen import Screen
    from penstock.cli.signals import until_signalled
    from penstock.cli.suite import Suite, SuiteFailed

    screen = Screen()
    suite = Suite(place, lambda name, line: _say(screen, name, line))

    async def serve() -> None:
        await suite.start()
        _say_ready(screen, place)
        await suite.keep()

    try:
        if not await until_signalled(serve(), then=suite.hurry):
            screen.line("Penstock is stopping.")
    except SuiteFailed as failed:
        raise CommandFailed(str(failed)) from failed
    finally:
        await suite.stop()
    screen.line("Penstock has stopped.")
    return 0


def _say(screen: "Screen", name: str, line: str) -> None:
    colours = {"flow_run": "cyan", "queue": "green", "log": "magenta", "keeper": "yellow"}
    screen.line((f"{name:<8} | ", colours.get(name, "blue")), line)


def _say_ready(screen: "Screen", place: "Place") -> None:
    where = ", ".join(f"{name} {place.address(name)}" for name in ("flow_run", "queue", "log", "keeper"))
    screen.line(("Penstock is ready: ", "bold green"), f"{where}; database {_without_password(place.database_url)}")
    if place.ports["flow_run"] != PORT_BASE:
        screen.line("Commands find it with: ", " ".join(f"{n}={v}" for n, v in place.client_environ().items()))


def _without_password(url: str) -> str:
    return re.sub(r"(password=)[^&]*", r"\1***", re.sub(r"(://[^:@/]*:).*@", r"\1***@", url))


def _addresses(host: str | None, port_base: int | None) -> Mapping[str, str]:
    from penstock.cli.suite import Place, ports_from
    from penstock.runtime.settings import ClientSettings, KeeperSettings

    client, keeper = ClientSettings.load(), KeeperSettings.load()
    place = Place(host or keeper.host, ports_from(port_base or PORT_BASE), "", {})
    if host is not None or port_base is not None:
        return {name: place.address(name) for name in ("flow_run", "queue", "log", "keeper")}
    return {
        "flow_run": client.flow_run_address,
        "queue": client.queue_address,
        "log": client.log_address,
        "keeper": client.keeper_address,
    }


async def _probe_all(addresses: Mapping[str, str]) -> "Sequence[Health]":
    import asyncio

    from penstock.cli.health import SERVED, probe

    return await asyncio.gather(*(probe(address, SERVED[name]) for name, address in addresses.items()))


def _print_json(addresses: Mapping[str, str], found: "Sequence[Health]") -> None:
    from importlib.metadata import version

    from penstock.cli.json_output import to_json

    services = [
        {
            "name": name,
            "address": address,
            "serving": health.serving,
            "detail": health.detail,
            "latency_seconds": health.latency_seconds,
        }
        for (name, address), health in zip(addresses.items(), found, strict=True)
    ]
    serving = all(health.serving for health in found)
    typer.echo(to_json({"version": version("penstock"), "serving": serving, "services": services}))


def _print_table(addresses: Mapping[str, str], found: "Sequence[Health]") -> None:
    from importlib.metadata import version

    from penstock.cli.screen import Screen

    screen = Screen()
    screen.line(f"penstock {version('penstock')}")
    rows = [
        (
            name,
            address,
            health.detail,
            "" if health.latency_seconds is None else f"{health.latency_seconds * 1000:.0f} ms",
        )
        for (name, address), health in zip(addresses.items(), found, strict=True)
    ]
    screen.table(("SERVICE", "ADDRESS", "STATE", "LATENCY"), rows)
