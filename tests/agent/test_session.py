"""An agent as a real process: its stream, its slots, and its end."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from flowrun.v1 import queue_service_pb2
from penstock.agent.run_directory import is_locked
from penstock.domain.errors import CredentialInvalid, SessionReplaced, Unavailable
from penstock.runtime.server import Server
from penstock.runtime.serving import Serving
from tests.agent.small_services import Run, SmallServices
from tests.agent.waiting import is_alive, is_gone, number_in, until

QUICK = "from penstock import flow\n@flow\ndef example():\n    print('hello')\n    return 1\n"
SLOW = """
import os, time
from penstock import flow
@flow
def example(witness):
    with open(witness, "w") as file:
        file.write(f"{os.getpid()}\\n")
    while not os.path.exists(witness + ".go"):
        time.sleep(0.01)
"""


class Agents:
    """Starts agents, and ends those that a failed test left behind."""

    def __init__(self, directory: Path, services: SmallServices) -> None:
        self.directory = directory
        self._services = services
        self._started: list[subprocess.Popen[str]] = []

    def start(self, **settings: object) -> subprocess.Popen[str]:
        told = {"ADDRESS": self._services.address, "DATA_DIR": self.directory / "data", "NAME": "test", "SLOTS": 2}
        environment = {f"PENSTOCK_{name}": str(value) for name, value in (told | settings).items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock.agent"],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    async def connected(self, **settings: object) -> subprocess.Popen[str]:
        """An agent that has allowed offers."""
        before = len(self._services.streams)
        process = self.start(**settings)
        await self._services.until(lambda: len(self._services.streams) > before and self._services.streams[-1].credit)
        return process

    def quick(self) -> Run:
        file = self.directory / "quick.py"
        file.write_text(QUICK)
        return self._services.add_run(python=f"{file}:example", state="SCHEDULED")

    def slow(self) -> tuple[Run, Path]:
        """A run that goes on until its witness is released."""
        file = self.directory / "slow.py"
        file.write_text(SLOW)
        witness = self.directory / f"witness-{len(self._services.runs)}"
        parameters = json.dumps({"witness": str(witness)})
        return self._services.add_run(python=f"{file}:example", state="SCHEDULED", parameters_json=parameters), witness

    def close(self) -> None:
        for witness in self.directory.glob("witness-*"):
            release(witness)
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for path in self.directory.glob("data/runs/*"):
            # Those that a test left behind would go on trying to report to services that are gone.
            if is_locked(path / "lease.json"):
                os.kill(int((path / "supervisor.pid").read_text()), signal.SIGKILL)


def release(witness: Path) -> None:
    """Let a slow run end."""
    Path(f"{witness}.go").touch()


async def output_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of an agent that ends, and all it printed."""
    output, _ = await asyncio.to_thread(process.communicate, timeout=40)
    return process.returncode, output


@pytest.fixture
def agents(tmp_path: Path, services: SmallServices) -> Iterator[Agents]:
    started = Agents(tmp_path, services)
    yield started
    started.close()


async def test_a_run_is_taken_executed_and_its_slot_freed(services: SmallServices, agents: Agents) -> None:
    """Credit starts at the number of slots and grows by one for each slot that becomes free."""
    agent = await agents.connected(LABELS="b, a,b")
    stream = services.streams[-1]
    run = agents.quick()

    await services.offer(run)
    await services.until(lambda: stream.credit == 3)

    assert list(stream.hello.labels) == ["a", "b"]
    assert run.state == "SUCCEEDED"
    assert run.texts == ["hello"]
    assert stream.hello.agent_id == run.agent_id
    assert stream.credits == [2, 3]
    agent.terminate()
    code, output = await output_of(agent)
    assert code == 0
    lines = output.splitlines()
    assert f"Agent test is connected to {services.address} with 2 slots and labels a, b." == lines[0]
    assert f"Took flow run quiet-river of example ({run.id})." == lines[1]
    assert lines[2] == "Flow run quiet-river of example has ended."
    assert lines[-1] == "Drained."


async def test_offers_of_one_moment_are_accepted_in_one_call(services: SmallServices, agents: Agents) -> None:
    """Accepting is batched, and each run has its own outcome."""
    await agents.connected(SLOTS=3)
    runs = [agents.quick() for _ in range(3)]

    await services.offer(*runs)
    await services.until(lambda: all(run.state == "SUCCEEDED" for run in runs))

    assert services.calls.count("AcceptFlowRuns") == 1


async def test_an_offer_that_is_gone_costs_no_slot(services: SmallServices, agents: Agents) -> None:
    """An offer that somebody else has by now is forgotten, and the credit grows again."""
    await agents.connected()
    stream = services.streams[-1]
    run = agents.quick()
    services.before = lambda rpc, _: run.lose_lease() if rpc == "AcceptFlowRuns" else None

    await services.offer(run)
    await services.until(lambda: stream.credit == 3)

    assert run.state == "SCHEDULED"
    assert "StartFlowRun" not in services.calls


async def test_a_run_that_was_cancelled_while_it_was_offered_is_given_back(
    services: SmallServices, agents: Agents
) -> None:
    """A run that is CANCELLING when it is accepted is not launched."""
    await agents.connected()
    run = agents.quick()
    run.state = "CANCELLING"

    await services.offer(run)
    await services.until(lambda: run.release_reasons)

    assert run.release_reasons == ["The run was cancelled before it was launched."]
    assert "StartFlowRun" not in services.calls


async def test_a_run_that_cannot_be_deployed_is_given_back_with_the_reason(
    services: SmallServices, agents: Agents
) -> None:
    """The transition will say on which agent and why, so that a person can mend it."""
    await agents.connected()
    run = agents.quick()
    run.flow_run.run_config.working_directory = "/no/such/directory"

    await services.offer(run)
    await services.until(lambda: run.release_reasons)

    assert "was not started on agent test" in run.release_reasons[0]
    assert ". the run's process cannot be started: [Errno 2] No such" in run.release_reasons[0]
    await services.until(lambda: services.streams[-1].credit == 3)


async def test_a_machine_that_cannot_launch_gives_runs_back(services: SmallServices, agents: Agents) -> None:
    """A data directory that can no longer be written to is the reason, and the slot is free again."""
    await agents.connected()
    (agents.directory / "data" / "runs").rmdir()
    (agents.directory / "data" / "runs").write_text("in the way")
    run = agents.quick()

    await services.offer(run)
    await services.until(lambda: run.release_reasons and services.streams[-1].credit == 3)

    assert run.release_reasons[0].startswith("The supervisor cannot be started: ")


async def test_an_unforeseen_failure_to_launch_gives_the_run_back(services: SmallServices, agents: Agents) -> None:
    """Whatever goes wrong in a launch, the slot is free again, and the run's record says why."""
    await agents.connected()
    run = services.add_run(command=["true"], state="SCHEDULED", flow_run_id="no\0name")

    await services.offer(run)
    await services.until(lambda: run.release_reasons and services.streams[-1].credit == 3)

    assert "embedded null byte" in run.release_reasons[0]


async def test_a_log_level_of_a_newer_server_is_as_good_as_none(services: SmallServices, agents: Agents) -> None:
    """A level that this agent does not know does not keep a run from being launched."""
    await agents.connected()
    run = agents.quick()
    run.flow_run.policy.log_level = 99  # type: ignore[assignment]

    await services.offer(run)
    await services.until(lambda: run.state == "SUCCEEDED" or run.release_reasons)

    assert run.state == "SUCCEEDED"


async def test_the_agent_renews_until_the_supervisor_has_started(services: SmallServices, agents: Agents) -> None:
    """While StartFlowRun is not answered the agent keeps the lease; the run starts late, and only once."""
    services.lease = services.lease / 30
    services.away = {"StartFlowRun"}
    await agents.connected()
    run = agents.quick()

    await services.offer(run)
    await services.until(lambda: "RenewLeases" in services.calls)
    services.away = set()
    await services.until(lambda: run.state == "SUCCEEDED" or run.release_reasons)

    assert run.state == "SUCCEEDED"


async def test_a_stop_on_the_stream_stops_the_run(services: SmallServices, agents: Agents) -> None:
    """The hint reaches the body long before the next renewal would."""
    services.lease *= 10  # so that no renewal tells the supervisor first
    await agents.connected()
    run, witness = agents.slow()
    await services.offer(run)
    pid = await number_in(witness)

    run.state = "CANCELLING"
    stop = queue_service_pb2.Stop(lease=services.lease_of(run))
    await services.streams[-1].send(queue_service_pb2.StreamFlowRunsResponse(stop=stop))
    await services.until(lambda: run.end is not None)

    assert run.state == "CANCELLED"
    assert await is_gone(pid)


async def test_draining_waits_for_what_is_held_and_takes_no_more(services: SmallServices, agents: Agents) -> None:
    """After a signal the credit stays as it is, offers are declined, and the stream is half-closed at the end.

    A signal that a terminal sends to the whole group of the agent does not reach its runs.
    """
    agent = await agents.connected()
    stream = services.streams[-1]
    run, witness = agents.slow()
    await services.offer(run)
    await number_in(witness)
    late = agents.quick()

    os.killpg(agent.pid, signal.SIGINT)
    assert await until(lambda: "Taking no more runs" in _peek(agent))
    await services.offer(late)
    await services.until(lambda: late.release_reasons)
    assert not stream.half_closed
    release(witness)

    assert (await output_of(agent))[0] == 0
    assert stream.half_closed
    assert run.state == "SUCCEEDED"
    assert late.release_reasons == ["The agent is draining."]
    assert stream.credits == [2]


def _peek(process: subprocess.Popen[str]) -> str:
    """The next line that an agent prints."""
    assert process.stdout is not None
    return process.stdout.readline()


async def test_a_second_signal_stops_the_runs(services: SmallServices, agents: Agents) -> None:
    """Runs are ended and reported as failed by the agent's end; the exit code says that it was no good order."""
    agent = await agents.connected()
    run, witness = agents.slow()
    await services.offer(run)
    pid = await number_in(witness)

    agent.terminate()
    assert await until(lambda: "Taking no more runs" in _peek(agent))
    agent.send_signal(signal.SIGINT)

    assert (await output_of(agent))[0] == 1
    assert run.state == "FAILED"
    assert run.end is not None
    assert run.end.failed.message.startswith("The agent was told to stop at once.")
    assert await is_gone(pid)


async def test_a_second_signal_stops_what_is_being_accepted(services: SmallServices, agents: Agents) -> None:
    """A run whose acceptance is answered after the second signal is given back, not launched."""
    agent = await agents.connected()
    run = agents.quick()

    def signal_twice(rpc: str, _: object) -> None:
        if rpc == "AcceptFlowRuns":
            agent.terminate()
            _read_until(agent, "Taking no more runs")
            agent.send_signal(signal.SIGINT)
            _read_until(agent, "Stopping the runs")

    services.before = signal_twice
    await services.offer(run)
    await services.until(lambda: run.release_reasons or run.end)

    assert (await output_of(agent))[0] == 1
    assert run.release_reasons == ["The agent was told to stop at once."]
    assert "StartFlowRun" not in services.calls


def _read_until(process: subprocess.Popen[str], words: str) -> None:
    """Read what an agent prints until it says that."""
    while words not in (line := _peek(process)):
        assert line, "the agent ended"


async def test_a_broken_stream_is_opened_again_and_harms_no_run(services: SmallServices, agents: Agents) -> None:
    """Hello says what is held, and credit begins anew with the slots that are free."""
    await agents.connected()
    run, witness = agents.slow()
    await services.offer(run)
    await number_in(witness)

    services.streams[0].close(Unavailable(detail="the replica drains"))
    await services.until(lambda: len(services.streams) == 2 and services.streams[1].credit)
    release(witness)
    await services.until(lambda: services.streams[1].credit == 2)

    assert [(run.id, 1)] == [(lease.flow_run_id, lease.fence) for lease in services.streams[1].hello.held]
    assert services.streams[1].credits == [1, 2]
    assert services.streams[0].hello.agent_id == services.streams[1].hello.agent_id
    assert run.state == "SUCCEEDED"


async def test_what_was_lost_while_the_stream_was_broken_is_stopped(services: SmallServices, agents: Agents) -> None:
    """Welcome names the leases that are not held any more."""
    services.lease *= 10  # so that no renewal tells the supervisor first
    await agents.connected()
    run, witness = agents.slow()
    await services.offer(run)
    pid = await number_in(witness)

    run.lose_lease()
    services.streams[0].close(Unavailable(detail="the replica drains"))

    assert await is_gone(pid)
    assert run.end is None


async def test_a_server_that_restarts_is_found_again(services: SmallServices, agents: Agents) -> None:
    """An agent outlives the absence of its queue."""
    await agents.connected()
    await services.stop()
    await services.start()

    await services.until(lambda: len(services.streams) == 2 and services.streams[1].credit == 2)
    run = agents.quick()
    await services.offer(run)
    await services.until(lambda: run.state == "SUCCEEDED")


async def test_heartbeats_are_numbered_and_echoed_both_ways(services: SmallServices, agents: Agents) -> None:
    """Each end counts its own and answers the other's with the number negated."""
    services.heartbeat = services.heartbeat / 100
    await agents.connected()
    stream = services.streams[-1]

    heartbeat = queue_service_pb2.Heartbeat(number=41)
    await stream.send(queue_service_pb2.StreamFlowRunsResponse(heartbeat=heartbeat))
    await services.until(lambda: -41 in stream.heartbeats and 3 in stream.heartbeats)

    assert [number for number in stream.heartbeats if number > 0][:3] == [1, 2, 3]


async def test_a_silent_queue_is_given_up(services: SmallServices, agents: Agents) -> None:
    """A queue that neither speaks nor echoes is left for a new stream."""
    services.heartbeat = services.heartbeat / 100
    await agents.connected()

    services.streams[0].deaf = True

    await services.until(lambda: len(services.streams) > 1)


async def test_a_queue_that_does_not_hear_is_given_up(services: SmallServices, agents: Agents) -> None:
    """It may speak as much as it likes: heartbeats that are never echoed show that it hears nothing."""
    services.heartbeat = services.heartbeat / 100
    await agents.connected()
    stream = services.streams[0]
    stream.deaf = True

    async def speak() -> None:
        for number in range(1, 1_000):
            heartbeat = queue_service_pb2.Heartbeat(number=number)
            await stream.send(queue_service_pb2.StreamFlowRunsResponse(heartbeat=heartbeat))
            await asyncio.sleep(services.heartbeat.total_seconds())

    speaking = asyncio.create_task(speak())
    await services.until(lambda: len(services.streams) > 1)
    speaking.cancel()


async def test_a_replaced_session_ends_the_agent(services: SmallServices, agents: Agents) -> None:
    """Two streams of one agent would fight for ever; the older one ends, and says why. Its runs live on."""
    agent = await agents.connected()
    run, witness = agents.slow()
    await services.offer(run)
    pid = await number_in(witness)

    services.streams[-1].close(SessionReplaced(agent_id=services.streams[-1].hello.agent_id))
    code, output = await output_of(agent)

    assert code == 1
    assert "gave this agent's place to another stream" in output
    assert "Traceback" not in output
    assert is_alive(pid)
    release(witness)
    await services.until(lambda: run.state == "SUCCEEDED")


async def test_an_agent_without_a_valid_token_ends_with_a_clear_message(
    services: SmallServices, agents: Agents
) -> None:
    """Trying again would not help."""

    def refuse(rpc: str, request: object) -> None:
        raise CredentialInvalid(detail="for a test")

    services.before = refuse
    code, output = await output_of(agents.start())

    assert code == 1
    assert "The queue refuses this agent: The call bears no valid token" in output
    assert "Set PENSTOCK_TOKEN to the token that the server was started with." in output
    assert "Traceback" not in output


async def test_an_address_of_something_else_ends_the_agent_with_a_clear_message(
    services: SmallServices, agents: Agents
) -> None:
    """Who mixed the addresses up is told which one is wrong, and which setting is about it."""
    server = Server(Serving(token=""), host="127.0.0.1", port=0)
    port = await server.start()
    try:
        code, output = await output_of(agents.start(ADDRESS=f"127.0.0.1:{port}"))
    finally:
        await server.stop(timedelta(0))

    assert code == 1
    assert f"What answers at 127.0.0.1:{port} is no Penstock server, or none for this call" in output
    assert "PENSTOCK_QUEUE_ADDRESS says where the queue service listens" in output


async def test_an_agent_that_reaches_nobody_says_what_to_do(services: SmallServices, agents: Agents) -> None:
    """It goes on trying, and says meanwhile how a server is started and where its address is set."""
    await services.stop()
    agent = agents.start()

    line = await asyncio.to_thread(_peek, agent)

    assert f"No Penstock server answers at {services.address}. Start one with: penstock server start." in line
    assert "PENSTOCK_QUEUE_ADDRESS" in line


async def test_a_data_directory_that_cannot_be_written_to_is_one_line(services: SmallServices, agents: Agents) -> None:
    """The message names the variable and what is in the way."""
    file = agents.directory / "file"
    file.touch()

    code, output = await output_of(agents.start(DATA_DIR=file))

    assert code == 2
    assert output == f"penstock: PENSTOCK_DATA_DIR must be a directory to write to, not '{file}': Not a directory.\n"


async def test_a_setting_that_cannot_be_used_is_one_line(services: SmallServices, agents: Agents) -> None:
    """The message names the variable and what is expected; the exit code is that of a misuse."""
    code, output = await output_of(agents.start(SLOTS=0))

    assert code == 2
    assert output == "penstock: PENSTOCK_SLOTS (or --slots) must be from 1 to 10,000, not 0.\n"


async def test_runs_outlive_their_agent_and_the_next_one_adopts_them(services: SmallServices, agents: Agents) -> None:
    """After SIGKILL of the agent the run goes on; the next agent counts its slot and reports it in Hello."""
    first = await agents.connected()
    run, witness = agents.slow()
    await services.offer(run)
    await number_in(witness)
    await services.until(lambda: run.state == "RUNNING")

    first.kill()
    await output_of(first)
    await agents.connected()
    stream = services.streams[-1]
    release(witness)
    await services.until(lambda: stream.credit == 2)

    assert [run.id] == [lease.flow_run_id for lease in stream.hello.held]
    assert stream.credits == [1, 2]
    assert run.state == "SUCCEEDED"


async def test_two_agents_on_one_machine_leave_each_others_runs_alone(services: SmallServices, agents: Agents) -> None:
    """What a living agent holds is not adopted by another that shares its data directory."""
    await agents.connected()
    run, witness = agents.slow()
    await services.offer(run)
    await number_in(witness)

    await agents.connected()

    assert list(services.streams[-1].hello.held) == []
    assert services.streams[-1].credit == 2


async def test_a_killed_supervisor_is_said_plainly(services: SmallServices, agents: Agents) -> None:
    """The slot is free again; what became of the run is known when its lease ends, which the agent leaves to that."""
    agent = await agents.connected()
    run, witness = agents.slow()
    await services.offer(run)
    pid = await number_in(witness)

    (file,) = agents.directory.glob("data/runs/*/supervisor.pid")
    os.kill(int(file.read_text()), signal.SIGKILL)
    await services.until(lambda: services.streams[-1].credit == 3)
    agent.terminate()

    assert await is_gone(pid)
    assert run.end is None
    assert (
        "Flow run quiet-river of example has ended without a report, so it is settled when its lease ends: "
        "The supervisor was ended by signal 9 (SIGKILL)."
    ) in (await output_of(agent))[1]


async def test_names_cannot_command_the_terminal(services: SmallServices, agents: Agents) -> None:
    """Control characters in names are shown, not sent."""
    agent = await agents.connected()
    run = agents.quick()
    run.flow_run.name = "red\x1b[31m"

    await services.offer(run)
    await services.until(lambda: services.streams[-1].credit == 3)
    agent.terminate()

    output = (await output_of(agent))[1]
    assert "Took flow run red\\x1b[31m of example" in output
    assert "\x1b" not in output
