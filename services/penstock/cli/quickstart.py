"""`penstock quickstart`: everything at once, on this machine, from nothing to a finished run."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from penstock.cli.failures import CommandFailed, told_plainly

if TYPE_CHECKING:
    from penstock.cli.suite import Child, Place
    from penstock.client import AsyncClient, CreatedFlowRun, FlowRun

PROJECT: Final = "examples"
EXAMPLE: Final = "river-report"
HOST: Final = "127.0.0.1"
SECONDS_MAX: Final = 120.0
LINES_SHOWN_MAX: Final = 15
AGENT_SECONDS_MAX: Final = 15.0
EXIT_INTERRUPTED: Final = 130


def quickstart(
    keep: Annotated[
        Path | None, typer.Option(help="Keep the database in this directory; otherwise it is thrown away at the end.")
    ] = None,
    report: Annotated[Path, typer.Option(help="The directory in which the example writes its report.")] = Path(
        "penstock-report"
    ),
) -> None:
    """See it all work: start the services and an agent, run an example flow, watch it, and leave nothing running.

    Ports are chosen so that nothing that runs already is disturbed.
    """
    import asyncio

    with told_plainly(), _directory(keep) as directory:
        from penstock.runtime import telemetry

        telemetry.configure("penstock-cli")
        try:
            sys.exit(asyncio.run(_Quickstart(directory, report.absolute(), keep is not None).run()))
        finally:
            telemetry.shutdown()


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    directory = Path(tempfile.mkdtemp(prefix="penstock-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Quickstart:
    """One run of the command."""

    def __init__(self, directory: Path, report: Path, kept: bool) -> None:
        from penstock.cli.screen import Screen
        from penstock.cli.suite import Suite, free_ports
        from penstock.runtime.clock import SystemClock

        self._directory = directory
        self._report = report
        self._kept = kept
        self._screen: Screen = Screen()
        self._monotonic = SystemClock().monotonic
        self._place = _place_in(directory, free_ports(HOST))
        self._suite: Suite = Suite(self._place, say=lambda _name, _line: None)
        self._agent: Child | None = None
        self._ended: FlowRun | None = None

    async def run(self) -> int:
        """Do everything, put everything away, and return the exit code."""
        from penstock.cli.progress import exit_code_of
        from penstock.cli.signals import until_signalled
        from penstock.cli.suite import SuiteFailed

        try:
            finished = await until_signalled(self._show_everything(), then=self._suite.hurry)
        except SuiteFailed as failed:
            raise CommandFailed(str(failed)) from failed
        finally:
            await self._put_away()
        if not finished:
            self._screen.line("Interrupted; nothing is left running.")
            return EXIT_INTERRUPTED
        assert self._ended is not None
        if exit_code_of(self._ended.state) == 0:
            self._say_what_next()
        return exit_code_of(self._ended.state)

    async def _show_everything(self) -> None:
        import asyncio

        try:
            async with asyncio.timeout(SECONDS_MAX):
                await self._start_services()
                await self._start_agent()
                await self._unless_something_ends(self._run_example())
        except TimeoutError as error:
            raise CommandFailed(f"Nothing was finished within {SECONDS_MAX:g} s.\n{self._last_lines()}") from error

    async def _start_services(self) -> None:
        began = self._monotonic()
        self._screen.line(("Penstock quickstart", "bold"))
        self._screen.line(f"Starting four services on an SQLite database in {self._directory} …")
        await self._suite.start()
        names = ", ".join(f"{name} {self._place.address(name)}" for name in ("flow_run", "queue", "log", "keeper"))
        self._screen.line(f"  ready after {self._monotonic() - began:.1f} s: {names}")

    async def _start_agent(self) -> None:
        from penstock.cli.suite import Child

        self._screen.line("Starting an agent …")
        self._agent = await Child.start(
            "agent",
            "penstock.cli",
            *("agent", "start", "--name", "quickstart", "--slots", "2"),
            environ={**self._place.environ, **self._place.client_environ()},
            say=lambda _name, _line: None,
        )

    async def _run_example(self) -> None:
        from penstock.cli.progress import ForPeople, follow_run
        from penstock.client import AsyncClient
        from penstock.runtime.settings import ClientSettings

        async with AsyncClient(settings=ClientSettings.load(self._place.client_environ())) as client:
            await self._register(client)
            run = await self._create(client)
            self._screen.line()
            self._ended = await follow_run(client, run.flow_run_id, ForPeople(self._screen))
            self._screen.line()
            await self._show_end(client, self._ended)

    async def _register(self, client: "AsyncClient") -> None:
        import pkgutil

        from penstock import examples
        from penstock.authoring.loading import NoFlowsFound, discover

        for module in pkgutil.iter_modules(examples.__path__, f"{examples.__name__}."):
            with contextlib.suppress(NoFlowsFound):
                for entry_point, flow in discover(module.name):
                    await client.register_flow(flow, project=PROJECT)
                    self._screen.line(f"Registered flow {flow.name} ({entry_point}).")

    async def _create(self, client: "AsyncClient") -> "CreatedFlowRun":
        flow = await client.look_up_flow(name=EXAMPLE, project=PROJECT)
        parameters = {"report": str(self._report)}
        run = await client.create_flow_run(flow_group_id=flow.flow_group_id, parameters=parameters)
        self._screen.line(f"Created flow run {run.name} of {EXAMPLE}, with parameters {run.parameters_json}")
        return run

    async def _show_end(self, client: "AsyncClient", run: "FlowRun") -> None:
        from penstock.cli.timeline import rows_of

        steps = [step async for step in client.list_transitions(run.flow_run_id)]
        self._screen.line((f"Timeline of {run.name}", "bold"), ", from its creation")
        self._screen.table(("MOMENT", "AFTER"), rows_of(steps))
        self._screen.line()
        if run.failure is not None:
            self._screen.line(("The run failed: ", "bold red"), str(run.failure))
        elif isinstance(run.result, dict) and "report" in run.result:
            self._screen.line(("Its report: ", "bold"), str(run.result["report"]))

    async def _unless_something_ends(self, work: Coroutine[Any, Any, None]) -> None:
        """Do that, but fail as soon as a service is given up or the agent ends."""
        import asyncio

        assert self._agent is not None
        working = asyncio.create_task(work)
        keeping, agent = asyncio.create_task(self._suite.keep()), asyncio.create_task(self._agent.end())
        try:
            await asyncio.wait({working, keeping, agent}, return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                keeping.result()
            if agent.done() and not working.done():
                raise CommandFailed(f"The agent ended with exit code {agent.result()}:\n{self._last_lines()}")
            working.result()
        finally:
            for task in (working, keeping, agent):
                task.cancel()
            await asyncio.wait({working, keeping, agent})

    async def _put_away(self) -> None:
        import asyncio
        from signal import SIGTERM

        if self._agent is not None:
            self._agent.signal(SIGTERM)
            if self._ended is None:
                # A second signal hurries: the agent stops the run that it would otherwise wait for.
                await asyncio.sleep(0.2)
            await self._agent.stop(AGENT_SECONDS_MAX)
        await self._suite.stop()

    def _last_lines(self) -> str:
        children = [*self._suite.children, *([self._agent] if self._agent else [])]
        return "\n".join(f"  {child.name:<8} | {line}" for child in children for line in child.lines(LINES_SHOWN_MAX))

    def _say_what_next(self) -> None:
        data_dir = f" --data-dir {self._directory}" if self._kept else ""
        self._screen.line()
        self._screen.line(("Nothing is left running. What to try next, each in a terminal of its own:", "bold"))
        self._screen.line(f"  penstock server start{data_dir}")
        self._screen.line("  penstock agent start")
        self._screen.line(
            f"  penstock register penstock.examples.hello_world --project {PROJECT} && "
            "penstock run --name hello-world --param name=you --watch"
        )


def _place_in(directory: Path, ports: Mapping[str, int]) -> "Place":
    from penstock.cli.suite import Place
    from penstock.runtime.settings import PREFIX, KeeperSettings, environment

    # Whatever the environment says about another installation has no say in this one.
    environ = {name: value for name, value in environment().items() if not name.startswith(PREFIX)}
    environ[f"{PREFIX}DATA_DIR"] = str(directory)
    return Place(HOST, ports, KeeperSettings.load(environ).database_url, environ)
