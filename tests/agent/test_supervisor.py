"""A supervisor as a real process, between real bodies and services on a socket."""

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowrun.v1 import log_pb2
from penstock.agent.exit_code import ExitCode
from penstock.agent.leases import lease_time
from penstock.agent.run_directory import Assignment, RunDirectory
from penstock.domain.errors import InvalidRequest, Violation
from tests.agent.collector import Collector
from tests.agent.small_services import TRACE_ID, TRACEPARENT, Run, SmallServices
from tests.agent.waiting import is_gone, number_in, until

STREAM_NAMES = {
    log_pb2.LOG_STREAM_STDOUT: "stdout",
    log_pb2.LOG_STREAM_STDERR: "stderr",
    log_pb2.LOG_STREAM_LOGGER: "logger",
}


MAIN = "import sys\nfrom penstock.agent.supervisor import main\nsys.exit(main())"


class Supervisors:
    """Starts supervisors, and ends those that a failed test left behind."""

    def __init__(self, directory: Path, services: SmallServices) -> None:
        self._directory = directory
        self._services = services
        self._started: list[subprocess.Popen[bytes]] = []

    def flow(self, body: str, name: str = "example", **fields: Any) -> Run:
        """A run of a flow whose file holds that code."""
        file = self._directory / f"{name}_{len(self._services.runs)}.py"
        file.write_text(f"from penstock import current_flow_run, flow, get_logger\n\n{body}")
        return self._services.add_run(python=f"{file}:example", **fields)

    def prepare(self, run: Run, **changes: Any) -> RunDirectory:
        lease = self._services.lease.total_seconds()
        assignment = Assignment(
            flow_run_id=run.id,
            fence=run.fence,
            attempt=run.flow_run.attempt,
            flow_name=run.flow_run.flow_name,
            flow_run_name=run.flow_run.name,
            agent_id="agent",
            entry_point=run.flow.entry_point.python,
            command=list(run.flow.entry_point.command.arguments),
            parameters_json=run.flow_run.parameters_json,
            context_json=run.flow_run.context_json,
            environment={},
            working_directory=str(self._directory),
            log_level="INFO",
            flow_run_address=self._services.address,
            queue_address=self._services.address,
            log_address=self._services.address,
            token="secret-token",
            lease_end=lease_time() + lease,
            lease_seconds=lease,
            stop_grace_seconds=5.0,
            trace_context={"traceparent": TRACEPARENT},
        )
        return RunDirectory.create(self._directory, replace(assignment, **changes))

    def start(self, directory: RunDirectory, *, mishap: str = "") -> subprocess.Popen[bytes]:
        """Start a supervisor; `mishap` is code that breaks it first."""
        program = ["-c", f"{mishap}\n{MAIN}"] if mishap else ["-m", "penstock.agent.supervisor"]
        process = subprocess.Popen(
            [sys.executable, *program, str(directory.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    async def supervise(self, run: Run, **changes: Any) -> int:
        """Supervise a run to its end; the exit code of the supervisor."""
        return await exit_of(self.start(self.prepare(run, **changes)))

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()


async def exit_of(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, 40)


@pytest.fixture
def supervisors(tmp_path: Path, services: SmallServices) -> Iterator[Supervisors]:
    started = Supervisors(tmp_path, services)
    yield started
    started.close()


WAITING = """
import os, time
@flow
def example(witness):
    with open(witness, "w") as file:
        file.write(f"{os.getpid()}\\n")
    print("waiting")
    time.sleep(60)
"""


async def test_a_flow_that_returns_succeeds_with_its_result(services: SmallServices, supervisors: Supervisors) -> None:
    """The result of the function is the result of the run, with every digit of its parameters."""
    run = supervisors.flow(
        "@flow\ndef example(number, text='b'):\n    return {'number': number, 'text': text}\n",
        parameters_json='{"number": 123456789012345678901234567890, "text": "ü"}',
    )

    code = await supervisors.supervise(run)

    assert code == ExitCode.REPORTED
    assert run.state == "SUCCEEDED"
    assert run.end is not None
    assert run.end.execution_id == run.execution_id != ""
    assert run.end.succeeded.result_json == '{"number": 123456789012345678901234567890, "text": "ü"}'


async def test_a_coroutine_function_is_a_flow_too(services: SmallServices, supervisors: Supervisors) -> None:
    """A flow may be an async function."""
    run = supervisors.flow("import asyncio\n@flow\nasync def example():\n    await asyncio.sleep(0)\n    return 7\n")

    await supervisors.supervise(run)

    assert run.end is not None
    assert run.end.succeeded.result_json == "7"


async def test_a_flow_that_returns_nothing_has_no_result(services: SmallServices, supervisors: Supervisors) -> None:
    """None is the absence of a result."""
    run = supervisors.flow("@flow\ndef example():\n    pass\n")

    await supervisors.supervise(run)

    assert run.end is not None
    assert run.end.HasField("succeeded")
    assert not run.end.succeeded.HasField("result_json")


async def test_an_exception_fails_the_run_with_the_authors_traceback_only(
    services: SmallServices, supervisors: Supervisors
) -> None:
    """Type, message and traceback are reported, without a frame of ours; the log shows them too."""
    run = supervisors.flow("@flow\ndef example():\n    deeper()\ndef deeper():\n    raise ValueError('no water')\n")

    code = await supervisors.supervise(run)

    assert code == ExitCode.REPORTED
    assert run.end is not None
    failed = run.end.failed
    assert (failed.type, failed.message, failed.exit_code) == ("ValueError", "no water", 1)
    assert "in deeper" in failed.traceback
    assert "/penstock/" not in failed.traceback
    assert any("ValueError: no water" in text for text in run.texts)


@pytest.mark.parametrize(
    ("body", "message", "exit_code", "number"),
    [
        ("sys.exit(3)", "The process exited with code 3.", 3, 0),
        ("os._exit(0)", "The process exited with code 0 before the flow had returned.", 0, 0),
        ("os.kill(os.getpid(), 9)", "The process was ended by signal 9 (SIGKILL).", 0, 9),
    ],
)
async def test_a_body_that_ends_without_returning_fails(
    services: SmallServices, supervisors: Supervisors, body: str, message: str, exit_code: int, number: int
) -> None:
    """The exit code or the signal is the reason; what was printed before is kept, also a line that never ended."""
    run = supervisors.flow(
        "import os, sys\n@flow\ndef example():\n    print('first')\n    print('half a', end='', flush=True)\n"
        f"    {body}\n"
    )

    await supervisors.supervise(run)

    assert run.end is not None
    assert (message, exit_code, number) == (run.end.failed.message, run.end.failed.exit_code, run.end.failed.signal)
    assert run.texts == ["first", "half a"]


async def test_leaving_with_code_zero_is_success(services: SmallServices, supervisors: Supervisors) -> None:
    """sys.exit() without a code ends a flow well."""
    run = supervisors.flow("import sys\n@flow\ndef example():\n    sys.exit()\n")

    await supervisors.supervise(run)

    assert run.state == "SUCCEEDED"


async def test_print_stderr_and_loggers_keep_their_order(services: SmallServices, supervisors: Supervisors) -> None:
    """What a flow says arrives in the order in which it was said, whichever way it was said."""
    run = supervisors.flow(
        "import sys, logging\n@flow\ndef example():\n"
        "    for number in range(20):\n"
        "        print('out', number)\n"
        "        print('err', number, file=sys.stderr)\n"
        "        get_logger().info('log %d', number)\n"
        "    logging.getLogger('other').debug('too quiet')\n"
        "    logging.getLogger('other').warning('loud')\n"
    )

    await supervisors.supervise(run)

    expected = [
        (stream, f"{word} {number}")
        for number in range(20)
        for stream, word in (("stdout", "out"), ("stderr", "err"), ("logger", "log"))
    ]
    assert [*expected, ("logger", "loud")] == [(STREAM_NAMES[line.stream], line.text) for line in run.lines]
    assert [*range(1, 62)] == [line.sequence for line in run.lines]
    assert {"", "example", "other"} == {line.logger for line in run.lines}
    assert run.lines[-1].level == log_pb2.LOG_LEVEL_WARNING
    assert {TRACE_ID} == {line.trace_id for line in run.lines}
    assert run.closed


async def test_raw_output_is_kept_as_it_was_written(services: SmallServices, supervisors: Supervisors) -> None:
    """Bytes of a subprocess, of no encoding and without a last newline, are lines as well."""
    run = supervisors.flow(
        "import os, subprocess\n@flow\ndef example():\n"
        "    os.write(1, b'caf\\xc3\\xa9\\n\\xff\\xfe\\n')\n"
        "    subprocess.run(['printf', 'no newline'])\n"
        "    os.write(2, b'zero\\0byte')\n"
    )

    await supervisors.supervise(run)

    assert [line.text or line.data for line in run.lines if line.stream == log_pb2.LOG_STREAM_STDOUT] == [
        "café",
        b"\xff\xfe",
        "no newline",
    ]
    assert [line.data for line in run.lines if line.stream == log_pb2.LOG_STREAM_STDERR] == [b"zero\0byte"]


async def test_ten_thousand_lines_and_a_long_one_arrive_whole(
    services: SmallServices, supervisors: Supervisors
) -> None:
    """Nothing is lost between the last print and the end; a line that is too long comes in pieces."""
    run = supervisors.flow(
        "@flow\ndef example():\n    for number in range(10_000):\n        print(number)\n    print('ü' * 100_000)\n"
    )

    await supervisors.supervise(run)

    assert [str(number) for number in range(10_000)] == run.texts[:10_000]
    assert "".join(run.texts[10_000:]) == "ü" * 100_000
    assert max(len(text.encode()) for text in run.texts) <= 65_536


async def test_a_result_that_is_no_json_fails_clearly(services: SmallServices, supervisors: Supervisors) -> None:
    """The failure says that the flow returned what cannot be stored."""
    run = supervisors.flow("@flow\ndef example():\n    return {1, 2}\n")

    await supervisors.supervise(run)

    assert run.end is not None
    assert run.end.failed.type == "TypeError"
    assert "the flow returned what cannot be written as JSON" in run.end.failed.message


async def test_a_file_that_cannot_be_imported_fails_with_its_own_error(
    services: SmallServices, supervisors: Supervisors
) -> None:
    """The author sees the author's error, and where it was raised."""
    run = supervisors.flow("import nothing_of_this_name\n")

    await supervisors.supervise(run)

    assert run.end is not None
    assert run.end.failed.type == "ModuleNotFoundError"
    assert "example_0.py" in run.end.failed.traceback


async def test_user_code_knows_its_run_and_not_the_token(
    services: SmallServices, supervisors: Supervisors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow sees who it is, what the run config added and its trace, and no secret of the agent."""
    run = supervisors.flow(
        "import os\n@flow\ndef example(a):\n"
        "    run = current_flow_run()\n"
        "    return {'run': [run.id, run.fence, run.attempt, run.name, run.flow_name, run.parameters, run.context],\n"
        "            'added': os.environ['ADDED'], 'trace': os.environ['TRACEPARENT'],\n"
        "            'secrets': [name for name, value in os.environ.items() if 'secret' in value],\n"
        "            'fds': sorted(os.listdir('/proc/self/fd')) if os.path.exists('/proc') else [],\n"
        "            'stdin': os.read(0, 10).decode()}\n",
        parameters_json='{"a": 1}',
        context_json='{"b": 2}',
    )
    monkeypatch.setenv("PENSTOCK_TOKEN", "secret-token")

    await supervisors.supervise(run, environment={"ADDED": "yes"})

    assert run.end is not None
    result = json.loads(run.end.succeeded.result_json)
    assert [run.id, 1, 1, "quiet-river", "example", {"a": 1}, {"b": 2}] == result["run"]
    assert result["added"] == "yes"
    assert result["trace"].split("-")[1] == TRACE_ID
    assert result["secrets"] == []
    assert result["stdin"] == ""
    assert len(result["fds"]) <= 5  # three streams, the records, and the listing itself


@pytest.mark.parametrize("refusal", ["LEASE_LOST", "EXECUTION_REFUSED"])
async def test_a_refused_start_never_begins(
    services: SmallServices, supervisors: Supervisors, tmp_path: Path, refusal: str
) -> None:
    """User code is not executed when somebody else has the run; nothing is reported."""
    witness = tmp_path / "witness"
    run = supervisors.flow(WAITING, parameters_json=json.dumps({"witness": str(witness)}))
    directory = supervisors.prepare(run)
    if refusal == "LEASE_LOST":
        run.lose_lease()
    else:
        run.execution_id = "another"

    code = await exit_of(supervisors.start(directory))

    assert code == ExitCode.DROPPED
    assert not witness.exists()
    assert services.history == []


async def test_a_cancelled_run_is_not_begun(services: SmallServices, supervisors: Supervisors, tmp_path: Path) -> None:
    """A run that is CANCELLING at its start is confirmed as stopped, under its execution's id."""
    witness = tmp_path / "witness"
    run = supervisors.flow(WAITING, parameters_json=json.dumps({"witness": str(witness)}), state="CANCELLING")

    code = await supervisors.supervise(run)

    assert code == ExitCode.REPORTED
    assert run.state == "CANCELLED"
    assert run.end is not None
    assert uuid.UUID(run.end.execution_id)
    assert not witness.exists()


async def test_an_unreachable_start_gives_up_when_the_lease_ends(
    services: SmallServices, supervisors: Supervisors, tmp_path: Path
) -> None:
    """Without an answer the code never begins, and whoever launched it may give the lease back."""
    services.lease = services.lease / 60
    services.away = {"StartFlowRun"}
    run = supervisors.flow(WAITING, parameters_json=json.dumps({"witness": str(tmp_path / "witness")}))

    code = await supervisors.supervise(run)

    assert code == ExitCode.NOT_STARTED
    assert not (tmp_path / "witness").exists()


async def test_a_lost_lease_ends_the_body(services: SmallServices, supervisors: Supervisors, tmp_path: Path) -> None:
    """When the run is somebody else's, the body and its children are ended, and nothing is reported."""
    services.lease = services.lease / 60
    witness = tmp_path / "witness"
    run = supervisors.flow(WAITING, parameters_json=json.dumps({"witness": str(witness)}))
    supervisor = supervisors.start(supervisors.prepare(run))
    pid = await number_in(witness)

    run.lose_lease()

    assert await exit_of(supervisor) == ExitCode.DROPPED
    assert await is_gone(pid)
    assert run.end is None
    assert run.texts == ["waiting"]


async def test_a_lease_that_nobody_renews_ends_the_body(
    services: SmallServices, supervisors: Supervisors, tmp_path: Path
) -> None:
    """A body does not live on beside the successor that the servers may start without us."""
    services.lease = services.lease / 40
    witness = tmp_path / "witness"
    run = supervisors.flow(WAITING, parameters_json=json.dumps({"witness": str(witness)}))
    supervisor = supervisors.start(supervisors.prepare(run))
    pid = await number_in(witness)

    services.away = {"RenewLeases"}

    assert await exit_of(supervisor) == ExitCode.DROPPED
    assert await is_gone(pid)


async def test_a_cancelled_run_is_stopped_and_says_so(
    services: SmallServices, supervisors: Supervisors, tmp_path: Path
) -> None:
    """SIGTERM reaches the code, whose clean-up is executed and heard, and the run ends CANCELLED."""
    services.lease = services.lease / 60
    witness = tmp_path / "witness"
    run = supervisors.flow(
        "import os, time\n@flow\ndef example(witness):\n    try:\n"
        "        with open(witness, 'w') as file:\n            file.write(f'{os.getpid()}\\n')\n"
        "        time.sleep(60)\n    finally:\n        print('cleaned up')\n",
        parameters_json=json.dumps({"witness": str(witness)}),
    )
    supervisor = supervisors.start(supervisors.prepare(run))
    await number_in(witness)

    run.state = "CANCELLING"

    assert await exit_of(supervisor) == ExitCode.REPORTED
    assert run.state == "CANCELLED"
    assert run.texts == ["cleaned up"]
    assert run.end is not None
    assert run.end.stopped.message == "The process was ended by signal 15 (SIGTERM)."


async def test_a_body_that_ignores_the_request_is_killed(
    services: SmallServices, supervisors: Supervisors, tmp_path: Path
) -> None:
    """After the grace nothing of the body's group is left, children included."""
    witness = tmp_path / "witness"
    run = services.add_run(
        command=["sh", "-c", f"trap '' TERM; sleep 60 & echo $! > {witness}; while :; do sleep 1; done"]
    )
    supervisor = supervisors.start(supervisors.prepare(run, stop_grace_seconds=0.3))
    child = await number_in(witness)

    supervisor.terminate()

    assert await exit_of(supervisor) == ExitCode.REPORTED
    assert await is_gone(child)
    assert run.end is not None
    assert run.end.failed.signal == 9
    assert run.end.failed.message.startswith("The agent was told to stop at once.")


async def test_the_body_ends_with_its_supervisor(
    services: SmallServices, supervisors: Supervisors, tmp_path: Path
) -> None:
    """A supervisor that is killed leaves no body behind."""
    witness = tmp_path / "witness"
    run = supervisors.flow(WAITING, parameters_json=json.dumps({"witness": str(witness)}))
    supervisor = supervisors.start(supervisors.prepare(run))
    pid = await number_in(witness)

    supervisor.kill()

    assert await is_gone(pid)


@pytest.mark.parametrize("kind", ["flow", "command"])
async def test_what_a_body_started_ends_with_the_supervisor(
    services: SmallServices, supervisors: Supervisors, tmp_path: Path, kind: str
) -> None:
    """A supervisor that is killed leaves no child of its body behind."""
    witness = tmp_path / "witness"
    script = f"sleep 60 & echo $! > {witness}; wait"
    if kind == "flow":
        run = supervisors.flow(
            f"import subprocess\n@flow\ndef example():\n    subprocess.run({script!r}, shell=True)\n"
        )
    else:
        run = services.add_run(command=["sh", "-c", script])
    supervisor = supervisors.start(supervisors.prepare(run))
    child = await number_in(witness)

    supervisor.kill()

    assert await is_gone(child)


async def test_a_body_is_gone_before_its_lease_ends(
    services: SmallServices, supervisors: Supervisors, tmp_path: Path
) -> None:
    """Even when it ignores the request, and a renewal waits for an answer that does not come."""
    services.lease = services.lease / 20
    witness = tmp_path / "witness"
    script = f"trap '' TERM; echo $$ > {witness}; while :; do sleep 0.1; done"
    run = services.add_run(command=["sh", "-c", script])
    granted: list[float] = []

    def silence(rpc: str, _: Any) -> None:
        if rpc == "StartFlowRun":
            granted.append(lease_time())

    services.before = silence
    services.away = {"RenewLeases"}
    supervisor = supervisors.start(supervisors.prepare(run))
    pid = await number_in(witness)

    assert await is_gone(pid)
    assert lease_time() < granted[0] + services.lease.total_seconds()
    assert await exit_of(supervisor) == ExitCode.DROPPED


async def test_a_lease_that_cannot_be_kept_any_more_ends_the_body(
    services: SmallServices, supervisors: Supervisors, tmp_path: Path
) -> None:
    """A fault of the supervisor's own is no reason to let a body live on without a lease."""
    services.lease = services.lease / 20
    witness = tmp_path / "witness"
    run = supervisors.flow(WAITING, parameters_json=json.dumps({"witness": str(witness)}))
    mishap = "from penstock.agent import leases\nasync def renew(*_): raise ZeroDivisionError\nleases.renew = renew"
    supervisor = supervisors.start(supervisors.prepare(run), mishap=mishap)
    pid = await number_in(witness)

    assert await is_gone(pid)
    assert await exit_of(supervisor) == ExitCode.DROPPED


async def test_a_log_that_cannot_be_written_any_more_blocks_nobody(
    services: SmallServices, supervisors: Supervisors
) -> None:
    """A body that says more than waits goes on without a log when writing it fails on our side."""
    run = supervisors.flow("@flow\ndef example():\n    for _ in range(12): print('x' * 1_000_000)\n")
    mishap = (
        "from penstock.agent.log_writer import LogWriter\n"
        "async def run(self): raise ZeroDivisionError\nLogWriter.run = run"
    )

    code = await exit_of(supervisors.start(supervisors.prepare(run), mishap=mishap))

    assert code == ExitCode.REPORTED
    assert run.state == "SUCCEEDED"


async def test_an_outage_loses_nothing(services: SmallServices, supervisors: Supervisors, tmp_path: Path) -> None:
    """While the servers are away lines and the end wait; afterwards all of them are there, once."""
    go = tmp_path / "go"
    run = supervisors.flow(
        "import os, time\n@flow\ndef example(go):\n    print('before')\n"
        "    while not os.path.exists(go):\n        time.sleep(0.01)\n"
        "    for number in range(2_000):\n        print(number)\n    return 'done'\n",
        parameters_json=json.dumps({"go": str(go)}),
    )
    directory = supervisors.prepare(run)
    supervisor = supervisors.start(directory)
    await services.until(lambda: run.texts == ["before"])

    await services.stop()
    go.touch()
    assert await until(directory.exit_file.exists)
    await services.start()

    assert await exit_of(supervisor) == ExitCode.REPORTED
    assert run.state == "SUCCEEDED"
    assert ["before", *map(str, range(2_000))] == run.texts
    assert run.closed
    assert services.history.count("Finish") == 1


async def test_the_end_is_recorded_before_it_is_reported(services: SmallServices, supervisors: Supervisors) -> None:
    """When FinishFlowRun arrives, the record is on the disk; when it is answered, the directory goes."""
    run = supervisors.flow("@flow\ndef example():\n    return 1\n")
    directory = supervisors.prepare(run)
    recorded: list[str | None] = []
    services.before = lambda rpc, _: recorded.append(directory.recorded_exit()) if rpc == "FinishFlowRun" else None

    await exit_of(supervisors.start(directory))

    assert ["executionId" in (record or "") for record in recorded] == [True]
    assert not directory.path.exists()


async def test_a_recorded_end_is_reported_by_the_next_supervisor(
    services: SmallServices, supervisors: Supervisors, tmp_path: Path
) -> None:
    """A supervisor that finds a recorded end reports it, and executes nothing again."""
    counter = tmp_path / "counter"
    run = supervisors.flow(
        "@flow\ndef example(counter):\n    open(counter, 'a').write('x')\n",
        parameters_json=json.dumps({"counter": str(counter)}),
    )
    directory = supervisors.prepare(run)
    services.away = {"FinishFlowRun"}
    first = supervisors.start(directory)
    await services.until(lambda: "FinishFlowRun" in services.calls)
    first.kill()
    await exit_of(first)
    services.away = set()

    code = await exit_of(supervisors.start(directory))

    assert code == ExitCode.REPORTED
    assert run.state == "SUCCEEDED"
    assert counter.read_text() == "x"


async def test_a_supervisor_that_reaches_nobody_ends_when_it_is_asked_to(
    services: SmallServices, supervisors: Supervisors
) -> None:
    """After the grace it leaves the end where the next agent finds it."""
    services.away = {"FinishFlowRun", "WriteLogs"}
    directory = supervisors.prepare(supervisors.flow("@flow\ndef example(): print(1)\n"), stop_grace_seconds=0.3)
    supervisor = supervisors.start(directory)
    await services.until(lambda: "FinishFlowRun" in services.calls)

    supervisor.terminate()

    assert await exit_of(supervisor) == ExitCode.UNREPORTED
    assert "succeeded" in (directory.recorded_exit() or "")


async def test_a_second_supervisor_of_one_run_does_nothing(
    services: SmallServices, supervisors: Supervisors, tmp_path: Path
) -> None:
    """One run directory has one supervisor."""
    witness = tmp_path / "witness"
    run = supervisors.flow(WAITING, parameters_json=json.dumps({"witness": str(witness)}))
    directory = supervisors.prepare(run)
    supervisors.start(directory)
    await number_in(witness)

    assert await exit_of(supervisors.start(directory)) == ExitCode.DROPPED
    assert [call for call in services.calls if call == "StartFlowRun"] == ["StartFlowRun"]


async def test_a_command_gets_its_parameters_as_a_file(services: SmallServices, supervisors: Supervisors) -> None:
    """A program in any language finds its parameters, nothing on its input, and ends well with code 0."""
    script = 'cat "$PENSTOCK_PARAMETERS_FILE"; echo; cat; echo "$1" >&2; echo "$TRACEPARENT"'
    run = services.add_run(command=["sh", "-c", script, "sh", "two words"], parameters_json='{"n": 1.50}')

    code = await supervisors.supervise(run)

    assert code == ExitCode.REPORTED
    assert run.state == "SUCCEEDED"
    assert {'{"n": 1.50}', "two words"} <= set(run.texts)
    assert any(TRACE_ID in text for text in run.texts)


async def test_a_command_that_does_not_exist_fails(services: SmallServices, supervisors: Supervisors) -> None:
    """The shell's word for it is in the log, and the exit code in the failure."""
    run = services.add_run(command=["/no/such/program"])

    await supervisors.supervise(run)

    assert run.end is not None
    assert run.end.failed.exit_code == 127
    assert any("/no/such/program" in text for text in run.texts)


async def test_a_body_that_cannot_be_spawned_is_not_started(services: SmallServices, supervisors: Supervisors) -> None:
    """A working directory that is missing here says so, and the lease can be given back."""
    run = services.add_run(command=["true"])

    code = await supervisors.supervise(run, working_directory="/no/such/directory")

    assert code == ExitCode.NOT_STARTED
    assert services.history == []


async def test_lines_that_the_service_refuses_leave_a_visible_hole(
    services: SmallServices, supervisors: Supervisors
) -> None:
    """A line that will never be stored is replaced by one that says so, and the rest goes on."""

    def refuse_bad(rpc: str, request: Any) -> None:
        if rpc == "WriteLogs" and any(line.text == "bad" for line in request.lines):
            raise InvalidRequest((Violation("lines", "bad"),))

    services.before = refuse_bad
    run = supervisors.flow("@flow\ndef example():\n    print('bad')\n")

    await supervisors.supervise(run)

    assert [line.dropped.count for line in run.lines] == [1]
    assert "bad" in run.lines[0].dropped.reason
    assert run.closed


async def test_a_refused_result_becomes_a_failure(services: SmallServices, supervisors: Supervisors) -> None:
    """A result that the service will not take must not leave the run RUNNING for ever."""

    def refuse_success(rpc: str, request: Any) -> None:
        if rpc == "FinishFlowRun" and request.HasField("succeeded"):
            raise InvalidRequest((Violation("succeeded.result_json", "is too deep"),))

    services.before = refuse_success
    run = supervisors.flow("@flow\ndef example():\n    return 1\n")

    await supervisors.supervise(run)

    assert run.state == "FAILED"
    assert run.end is not None
    assert "is too deep" in run.end.failed.message


async def test_the_launchers_warnings_open_the_log(services: SmallServices, supervisors: Supervisors) -> None:
    """What the launcher does not do for a run is said in the run's own log."""
    run = supervisors.flow("@flow\ndef example():\n    pass\n")

    await supervisors.supervise(run, warnings=["The image is ignored."])

    assert [(line.text, line.level) for line in run.lines] == [("The image is ignored.", log_pb2.LOG_LEVEL_WARNING)]


async def test_the_trace_goes_on_through_supervisor_and_code(
    services: SmallServices, supervisors: Supervisors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor's span is a child of the launch, the code's spans are children of the supervisor's."""
    async with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector.address}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
        run = supervisors.flow(
            "from opentelemetry import trace\n@flow\ndef example():\n"
            "    with trace.get_tracer('mine').start_as_current_span('pour'):\n        print('inside')\n"
        )

        await supervisors.supervise(run)

    supervised, code = collector.spans["run example"], collector.spans["pour"]
    assert (supervised.service, supervised.trace_id) == ("penstock-supervisor", TRACE_ID)
    assert supervised.parent_id == TRACEPARENT.split("-")[2]
    assert (code.service, code.trace_id, code.parent_id) == ("penstock-flow", TRACE_ID, supervised.span_id)
    assert [(line.trace_id, line.span_id) for line in run.lines] == [(TRACE_ID, code.span_id)]


def test_supervisors_and_bodies_start_lean() -> None:
    """Neither imports what costs start-up time and is not needed."""
    modules = "penstock.agent.supervision, penstock.authoring.execute, penstock.agent.supervisor"
    heavy = ("pydantic", "sqlalchemy", "typer", "rich", "opentelemetry.sdk", "opentelemetry.exporter")
    script = f"import sys, {modules}; print([m for m in sys.modules if m.startswith({heavy!r})])"

    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert output.strip() == "[]"


def test_a_supervisor_has_no_connection_before_the_body_was_started() -> None:
    """A process that forks must have one thread: grpc is imported after the body was started."""
    script = "import sys, penstock.agent.supervisor; print('grpc' in sys.modules)"

    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert output.strip() == "False"


def test_the_run_directory_is_for_its_owner_alone(
    services: SmallServices, supervisors: Supervisors, tmp_path: Path
) -> None:
    """The directory holds a token: nobody else may enter it, nor read its files."""
    directory = supervisors.prepare(services.add_run(command=["true"]))

    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert directory.lease_file.stat().st_mode & 0o777 == 0o600
