"""`penstock run --execute`: real services, a real terminal, real signals."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flowrun.v1 import flow_pb2, flow_run_pb2, queue_service_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from flowrun.v1 import flow_service_pb2 as flow_verbs
from penstock.agent.run_directory import is_locked
from penstock.domain.errors import CredentialInvalid, Unavailable
from tests.agent.waiting import is_alive, is_gone, number_in
from tests.cli.command import Finished, line_with, penstock, running
from tests.cli.conftest import free_port_base
from tests.cli.terminal import CTRL_C, CTRL_Z, Terminal, at_a_terminal, program_at_a_terminal
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run, a_step

HELD_LEASE = 6.0

FLOWS = """
import os, signal, time
from penstock import current_flow_run, flow

@flow
def quick(word="hello"):
    print("said", word)
    return os.getcwd()

@flow(retries=1, retry_delay=1)
def fragile():
    print("attempt", current_flow_run().attempt)
    if current_flow_run().attempt == 1:
        raise ValueError("no water")

@flow
def examined():
    depth = "deep water"
    breakpoint()
    print("found", depth)
    return input("What is it? ")

@flow
def patient(witness, until="", stubborn=False):
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(witness, "w") as file:
        file.write(f"{os.getpid()}\\n")
    try:
        while not (until and os.path.exists(until)):
            time.sleep(0.01)
    finally:
        print("cleaned up")
"""


class Here:
    """A directory with flows that are registered at real services, and the command in it."""

    def __init__(self, directory: Path, variables: dict[str, str]) -> None:
        self.directory = directory
        self.witness = directory / "witness"
        self.variables = {**variables, "PENSTOCK_DATA_DIR": str(directory / "data")}

    async def penstock(self, *args: str) -> Finished:
        return await penstock(*args, cwd=self.directory, **self.variables)

    async def execute(self, name: str, *args: str) -> Finished:
        return await self.penstock("run", "--name", name, "--execute", *args)

    def executing(self, name: str, *args: str) -> Any:
        """The command while it executes a run."""
        return running("run", "--name", name, "--execute", *args, cwd=self.directory, **self.variables)

    def at_a_terminal(self, name: str, *args: str) -> Any:
        """The command at a terminal, while it executes a run."""
        return at_a_terminal("run", "--name", name, "--execute", *args, **self.variables)

    def in_a_shell(self) -> Any:
        """An interactive shell at a terminal, where `penstock` is the command."""
        return program_at_a_terminal("sh", "-i", PS1="$ ", ENV="", **self.variables)

    async def newest(self) -> dict[str, Any]:
        """The run that was created last."""
        shown = await self.penstock("get", "flow-runs", "--limit", "1", "--json")
        run: dict[str, Any] = json.loads(shown.out.splitlines()[0])
        return run

    async def states(self) -> list[tuple[str, str]]:
        """What the newest run went through, and why."""
        run = await self.newest()
        shown = await self.penstock("describe", "flow-run", run["flow_run_id"], "--json")
        return [(step["state"], step["cause"]) for step in json.loads(shown.out)["transitions"]]

    def end_supervisors(self) -> None:
        for path in self.directory.glob("data/runs/*"):
            if is_locked(path / "lease.json"):
                os.kill(int((path / "supervisor.pid").read_text()), signal.SIGKILL)

    def supervisor(self) -> int:
        (file,) = self.directory.glob("data/runs/*/supervisor.pid")
        return int(file.read_text())

    def command(self) -> int:
        """The process that executes the only run."""
        return int(status_of(self.supervisor())[1])


def status_of(pid: int) -> list[str]:
    """What the kernel knows of a process: its state, its parent and more."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


async def debug_in(shell: Terminal, project: list[str]) -> None:
    """Execute a run from a shell, up to the debugger."""
    shell.type(f"{sys.executable} -m penstock.cli run --name examined --execute {' '.join(project)}\n")
    await shell.until("(Pdb) ")


async def shell_answers(shell: Terminal, *, times: int = 5) -> None:
    """See that every line that is typed is the shell's."""
    for number in range(times):
        before = shell.shown.count("-the-shell-")
        shell.type(f"echo by-'the'-shell-{number}\n")
        await shell.until("-the-shell-", before + 1)


@pytest.fixture(scope="module")
async def services_with_short_leases(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, str]]:
    """The four services, whose leases are shorter than a look into a debugger, and what tells commands of them."""
    base = free_port_base()
    options = ("--data-dir", str(tmp_path_factory.mktemp("services")), "--port-base", str(base))
    async with running("server", "start", *options, PENSTOCK_HELD_LEASE=str(HELD_LEASE)) as process:
        await line_with("Penstock is ready", process)
        names = ("FLOW_RUN", "QUEUE", "LOG")
        yield {f"PENSTOCK_{name}_ADDRESS": f"127.0.0.1:{base + place}" for place, name in enumerate(names)}


@pytest.fixture
async def here(services_with_short_leases: dict[str, str], tmp_path: Path) -> AsyncIterator[Here]:
    """The command, with flows of its own; supervisors that a failed test left behind are ended."""
    started = Here(tmp_path, services_with_short_leases)
    (tmp_path / "flows.py").write_text(FLOWS)
    registered = await started.penstock("register", "flows.py", "--project", tmp_path.name)
    assert 0 == registered.code, registered.err
    yield started
    started.end_supervisors()


@pytest.fixture
def project(tmp_path: Path) -> list[str]:
    """The options that name the flows of this test among those of the others."""
    return ["--project", tmp_path.name]


async def test_a_run_is_executed_where_the_command_is(here: Here, project: list[str]) -> None:
    """Without an agent, in the command's own directory, and shown as it happens."""
    shown = await here.execute("quick", *project, "--param", "word=welcome")

    assert (0, "") == (shown.code, shown.err)
    assert "labels     penstock:agentless" in shown.out
    assert ["SCHEDULED", "SUBMITTED", "RUNNING", "SUCCEEDED"] == [
        line.split()[1] for line in shown.out.splitlines() if line[2:3] == ":" and "│" not in line
    ]
    assert "said welcome" in shown.out
    assert f"Result: {json.dumps(str(here.directory))}" in shown.out
    assert [] == list(here.directory.glob("data/runs/*"))


async def test_programs_get_one_event_per_line(here: Here, project: list[str]) -> None:
    """As of any run that is watched."""
    shown = await here.execute("quick", *project, "--json")

    events = [json.loads(line) for line in shown.out.splitlines()]
    assert ("created", "end") == (events[0]["event"], events[-1]["event"])
    assert "SUCCEEDED" == events[-1]["flow_run"]["state"]


async def test_a_retry_is_slept_out_and_executed_here(here: Here, project: list[str]) -> None:
    """The command waits until the next attempt is due; an agent would have to deploy it again."""
    shown = await here.execute("fragile", *project)

    assert 0 == shown.code
    assert "attempt 1" in shown.out
    assert "attempt 2" in shown.out
    assert ("SCHEDULED", "RETRIED") in await here.states()


async def test_a_future_start_is_slept_out(here: Here, project: list[str]) -> None:
    """The run is executed once it is due, and not before."""
    shown = await here.execute("quick", *project, "--in", "2s", "--json")

    events = [json.loads(line) for line in shown.out.splitlines()]
    steps = [event["transition"] for event in events if event["event"] == "state"]
    assert 0 == shown.code
    assert steps[0]["due_time"] <= next(step["create_time"] for step in steps if step["state"] == "SUBMITTED")


@pytest.mark.slow
async def test_a_breakpoint_opens_the_debugger_at_the_terminal(here: Here, project: list[str]) -> None:
    """What is typed reaches the debugger and `input`, what is printed is logged, and the lease outlives the session."""
    async with here.at_a_terminal("examined", *project) as terminal:
        await terminal.until("(Pdb) ")
        terminal.type("depth + ' ahead'\n")
        await terminal.until("'deep water ahead'")
        # Longer than the lease: only time itself can show that it was renewed.
        await asyncio.sleep(1.2 * HELD_LEASE)
        terminal.type("print('only ' + 'here')\n")
        await terminal.until("only here")
        terminal.type("c\n")
        await terminal.until("What is it? ")
        terminal.type("a river\n")
        code = await terminal.ended()

    assert 0 == code
    assert 'Result: "a river"' in terminal.shown
    assert ["SCHEDULED", "SUBMITTED", "RUNNING", "SUCCEEDED"] == [state for state, _ in await here.states()]
    log = (await here.penstock("logs", (await here.newest())["flow_run_id"])).out
    assert "found deep water" in log
    assert "only here" not in log


async def test_ctrl_c_in_the_debugger_cancels_the_run(here: Here, project: list[str]) -> None:
    """Code that waits for its user is stopped as any other is."""
    async with here.at_a_terminal("examined", *project) as terminal:
        await terminal.until("(Pdb) ")
        terminal.type(CTRL_C)
        code = await terminal.ended()

    assert 3 == code
    assert [("CANCELLING", "CANCEL_ASKED"), ("CANCELLED", "FINISHED")] == (await here.states())[-2:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_cancels_the_run(here: Here, project: list[str], number: signal.Signals) -> None:
    """The code may put its things away, which is still shown, and the exit code says that the run was cancelled."""
    async with here.executing("patient", *project, "--param", f"witness={here.witness}") as process:
        pid = await number_in(here.witness)
        process.send_signal(number)
        out, err = await process.communicate()

    assert (3, b"") == (process.returncode, err)
    assert b"cleaned up" in out
    assert await is_gone(pid)
    assert "CANCELLED" == (await here.newest())["state"]


async def test_a_signal_cancels_a_run_that_waits(here: Here, project: list[str]) -> None:
    """Nothing has to be stopped, so that is the end at once."""
    async with here.executing("quick", *project, "--in", "1h") as process:
        await line_with("SCHEDULED", process)
        process.terminate()
        await process.communicate()

    assert 3 == process.returncode
    assert [("SCHEDULED", "CREATED"), ("CANCELLED", "CANCEL_ASKED")] == await here.states()


async def test_a_second_signal_kills_and_leaves(here: Here, project: list[str]) -> None:
    """Code that does not listen is killed without further grace; the command says what becomes of the run."""
    here.variables["PENSTOCK_STOP_GRACE"] = "600"
    given = ("--param", f"witness={here.witness}", "--param", "stubborn=true")
    async with here.executing("patient", *project, *given) as process:
        pid = await number_in(here.witness)
        process.send_signal(signal.SIGINT)
        await line_with("CANCELLING", process)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()

    run = await here.newest()
    assert 130 == process.returncode
    assert "The run was killed. It counts as cancelled as soon as that is reported" in err.decode()
    assert f"penstock get flow-run {run['flow_run_id']}" in err.decode()
    assert await is_gone(pid)
    await here.penstock("logs", run["flow_run_id"], "--follow")
    assert ("CANCELLED", "FINISHED") == (await here.states())[-1]


async def test_a_killed_supervisor_fails_its_run(here: Here, project: list[str]) -> None:
    """The command knows at once, and reports what the supervisor cannot."""
    async with here.executing("patient", *project, "--param", f"witness={here.witness}") as process:
        pid = await number_in(here.witness)
        os.kill(here.supervisor(), signal.SIGKILL)
        out, _ = await process.communicate()

    assert 1 == process.returncode
    assert b"The supervisor of the run was ended by signal 9 (SIGKILL)" in out
    assert await is_gone(pid)
    assert ("FAILED", "FINISHED") == (await here.states())[-1]


async def test_a_killed_command_leaves_the_run_to_its_supervisor(here: Here, project: list[str]) -> None:
    """It goes on to its end, and that is reported."""
    end = here.directory / "end"
    given = ("--param", f"witness={here.witness}", "--param", f"until={end}")
    async with here.executing("patient", *project, *given) as process:
        await number_in(here.witness)
        process.kill()
        await process.communicate()

    end.touch()
    await here.penstock("logs", (await here.newest())["flow_run_id"], "--follow")

    assert ("SUCCEEDED", "FINISHED") == (await here.states())[-1]


async def test_the_end_of_the_terminal_cancels_the_run(here: Here, project: list[str]) -> None:
    """As Ctrl-C does, though nothing can be shown any more."""
    async with here.at_a_terminal("patient", *project, "--param", f"witness={here.witness}"):
        pid = await number_in(here.witness)
        command = here.command()

    assert await is_gone(command)
    assert not is_alive(pid)
    assert [("CANCELLING", "CANCEL_ASKED"), ("CANCELLED", "FINISHED")] == (await here.states())[-2:]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
async def test_the_debugger_of_a_command_that_has_gone_fails_the_run(
    here: Here, project: list[str], number: signal.Signals
) -> None:
    """What is typed from then on is the shell's, and the run says why it failed."""
    async with here.in_a_shell() as shell:
        await debug_in(shell, project)
        os.kill(here.command(), number)
        await shell_answers(shell)
    run = await here.newest()
    await here.penstock("logs", run["flow_run_id"], "--follow")

    run = await here.newest()
    assert "FAILED" == run["state"]
    assert "Nobody can be asked any more" in run["failure"]["message"]


async def test_a_suspended_command_leaves_the_keys_to_the_shell(here: Here, project: list[str]) -> None:
    """In the background as well; in the foreground the debugger has them again."""
    async with here.in_a_shell() as shell:
        await debug_in(shell, project)
        shell.type(CTRL_Z)
        await shell.until("Stopped")
        await shell_answers(shell)
        shell.type("bg\n")
        await shell_answers(shell)
        assert "T" != status_of(here.command())[0]  # it goes on there, until it has the terminal again
        shell.type("fg\n")
        shell.type("depth + ' ahead'\n")
        await shell.until("'deep water ahead'")
        shell.type("c\n")
        await shell.until("What is it? ")
        shell.type("a river\n")
        await shell.until('Result: "a river"')

    assert "SUCCEEDED" == (await here.newest())["state"]


async def test_what_nobody_reads_is_not_shown(here: Here, project: list[str]) -> None:
    """A run that is executed here does not depend on who looks on."""
    end = here.directory / "end"
    given = ("--param", f"witness={here.witness}", "--param", f"until={end}")
    async with here.executing("patient", *project, *given) as process:
        await number_in(here.witness)
        process._transport.get_pipe_transport(1).close()
        end.touch()
        assert 0 == await process.wait()

    assert "SUCCEEDED" == (await here.newest())["state"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_right_after_the_creation_cancels_the_run(
    here: Here, project: list[str], number: signal.Signals
) -> None:
    """From the moment at which the run is known, it is not left behind."""
    async with here.executing("quick", *project, "--in", "1h") as process:
        await line_with("Created flow run", process)
        process.send_signal(number)
        await process.communicate()

    assert 3 == process.returncode
    assert "CANCELLED" == (await here.newest())["state"]


async def test_the_same_key_takes_up_a_run_whose_command_was_killed(here: Here, project: list[str]) -> None:
    """Nobody else would execute it: it waits for the command, which may simply be repeated."""
    again = (*project, "--idempotency-key", here.directory.name, "--in", "2s")
    async with here.executing("quick", *again) as process:
        await line_with("SCHEDULED", process)
        process.kill()
        await process.communicate()
    killed = await here.newest()

    shown = await here.execute("quick", *again)

    run = await here.newest()
    assert 0 == shown.code, shown.err
    assert "This idempotency key had already created" in shown.out
    assert ("SCHEDULED", "SUCCEEDED") == (killed["state"], run["state"])
    assert killed["flow_run_id"] == run["flow_run_id"]


async def test_what_concerns_an_agent_alone_may_be_wrong(here: Here, project: list[str]) -> None:
    """How many runs it takes, and which, is nothing to a command that executes one run of its own."""
    here.variables |= {"PENSTOCK_SLOTS": "none", "PENSTOCK_LABELS": "x" * 1_000}

    shown = await here.execute("quick", *project)

    assert (0, "") == (shown.code, shown.err)


@pytest.fixture
def river(services: ScriptedServices) -> ScriptedServices:
    """Scripted services with a run that waits for this process."""

    async def wait(request: object, context: Any) -> None:
        if isinstance(request, verbs.WatchFlowRunRequest):
            await context.write(a_step(2))
        await asyncio.Event().wait()

    flow = flow_pb2.Flow(flow_id="flow", flow_group_id="group", name="river", version=3)
    run = a_flow_run(labels=["penstock:agentless"])
    services.scripts |= {
        "LookUpFlow": lambda *_: flow_verbs.LookUpFlowResponse(flow=flow),
        "GetFlowGroup": lambda *_: flow_verbs.GetFlowGroupResponse(),
        "CreateFlowRun": lambda *_: verbs.CreateFlowRunResponse(flow_run=run, created=True),
        "WatchFlowRun": wait,
        "TailLogs": wait,
        "LeaseFlowRuns": wait,
    }
    return services


async def test_the_run_is_created_for_this_process_alone(river: ScriptedServices, tmp_path: Path) -> None:
    """It bears the reserved label, and is not queued again once that process is lost, as nobody would take it."""

    def refuse(*_: object) -> queue_service_pb2.LeaseFlowRunsResponse:
        raise CredentialInvalid(detail="for a test")

    river.scripts["LeaseFlowRuns"] = refuse

    shown = await penstock(
        *("run", "--name", "river", "--execute"), PENSTOCK_ADDRESS=river.address, PENSTOCK_DATA_DIR=str(tmp_path)
    )

    (creation,) = [each for each in river.requests if isinstance(each, verbs.CreateFlowRunRequest)]
    assert ["penstock:agentless"] == list(creation.labels.labels)
    assert 0 == creation.policy.max_lost_restarts
    assert creation.policy.HasField("max_lost_restarts")
    assert 1 == shown.code
    assert "Set PENSTOCK_TOKEN to the token that the server was started with." in shown.err
    assert f"no agent takes it. Cancel it with: penstock cancel {RUN_ID}" in shown.err


@pytest.mark.parametrize("wrong", ["PENSTOCK_DATA_DIR", "PENSTOCK_STOP_GRACE"])
async def test_what_keeps_it_from_being_executed_keeps_it_from_being_created(
    river: ScriptedServices, tmp_path: Path, wrong: str
) -> None:
    """A run that could not be executed here would wait for ever."""
    file = tmp_path / "file"
    file.touch()
    told = {"PENSTOCK_ADDRESS": river.address, "PENSTOCK_DATA_DIR": str(tmp_path / "data"), wrong: str(file)}

    shown = await penstock("run", "--name", "river", "--execute", **told)

    assert 2 == shown.code
    assert f"{wrong} must be" in shown.err
    assert not river.requests


class Held:
    """Holds back the answer of one rpc."""

    def __init__(self, services: ScriptedServices, rpc: str) -> None:
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self._script = services.scripts[rpc]
        services.scripts[rpc] = self._held

    async def _held(self, request: object, context: object) -> Any:
        self.asked.set()
        await self.answer.wait()
        return self._script(request, context)


def creations(services: ScriptedServices) -> int:
    return len([each for each in services.requests if isinstance(each, verbs.CreateFlowRunRequest)])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_before_the_creation_creates_nothing(
    river: ScriptedServices, tmp_path: Path, number: signal.Signals
) -> None:
    """There is nothing to wait for either."""
    held = Held(river, "LookUpFlow")
    told = {"PENSTOCK_ADDRESS": river.address, "PENSTOCK_DATA_DIR": str(tmp_path)}
    async with running("run", "--name", "river", "--execute", **told) as process:
        await held.asked.wait()
        process.send_signal(number)
        _, err = await process.communicate()

    assert 130 == process.returncode
    assert b"penstock: Interrupted, before a run was created.\n" == err
    assert 0 == creations(river)


async def test_a_signal_while_the_run_is_created_cancels_it(river: ScriptedServices, tmp_path: Path) -> None:
    """As soon as it is known; it is not even asked for to be executed."""
    cancelled = asyncio.Event()

    def cancel(*_: object) -> verbs.CancelFlowRunResponse:
        cancelled.set()
        return verbs.CancelFlowRunResponse(flow_run=final)

    async def watch(_: object, context: Any) -> None:
        await cancelled.wait()
        await context.write(a_step(2, flow_run_pb2.FLOW_RUN_STATE_CANCELLED))
        await context.write(verbs.WatchFlowRunResponse(end=verbs.WatchEnd(flow_run=final)))

    final = a_flow_run(state=flow_run_pb2.FLOW_RUN_STATE_CANCELLED)
    river.scripts |= {"CancelFlowRun": cancel, "WatchFlowRun": watch, "TailLogs": lambda *_: None}
    held = Held(river, "CreateFlowRun")
    told = {"PENSTOCK_ADDRESS": river.address, "PENSTOCK_DATA_DIR": str(tmp_path)}
    async with running("run", "--name", "river", "--execute", "--no-logs", **told) as process:
        await held.asked.wait()
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert b"Waiting to be told of the run, to cancel it." in await process.stderr.readline()
        held.answer.set()
        await process.communicate()

    assert 3 == process.returncode
    assert not [each for each in river.requests if isinstance(each, queue_service_pb2.LeaseFlowRunsRequest)]


async def test_a_second_signal_does_not_wait_for_the_creation(river: ScriptedServices, tmp_path: Path) -> None:
    """Then it is not known whether there is a run."""
    held = Held(river, "CreateFlowRun")
    told = {"PENSTOCK_ADDRESS": river.address, "PENSTOCK_DATA_DIR": str(tmp_path)}
    async with running("run", "--name", "river", "--execute", **told) as process:
        await held.asked.wait()
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()

    assert 130 == process.returncode
    assert "The run may have been created all the same." in err.decode()


async def test_a_cancel_that_reaches_nobody_is_said(river: ScriptedServices, tmp_path: Path) -> None:
    """It is tried again for a while; then the command ends all the same, and its exit code says what happened."""

    def refuse(*_: object) -> None:
        raise Unavailable("it is draining")

    river.scripts["CancelFlowRun"] = refuse
    told = {"PENSTOCK_ADDRESS": river.address, "PENSTOCK_DATA_DIR": str(tmp_path)}
    async with running("run", "--name", "river", "--execute", **told) as process:
        await line_with("RUNNING", process)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()

    assert 4 == process.returncode
    assert 1 < len([each for each in river.requests if isinstance(each, verbs.CancelFlowRunRequest)])
    assert "The run could not be cancelled: This process cannot serve now: it is draining." in err.decode()
    assert "Traceback" not in err.decode()
