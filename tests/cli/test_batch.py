"""`penstock run --batch`."""

import asyncio
import json
import re
import signal
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flowrun.v1 import flow_run_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from penstock.cli.batch import Batch, send_batch
from penstock.cli.creating import Target
from penstock.cli.failures import CommandFailed
from penstock.client import AsyncClient
from penstock.domain.errors import FlowNotFound, Overloaded, Unavailable
from tests.cli.command import Finished, penstock, running
from tests.cli.conftest import RunningServer
from tests.cli.terminal import at_a_terminal
from tests.client.scripted import ScriptedServices


def run_id(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012}"


class Backend:
    """Creates runs as a server does: one for each key, and refuses those that are named so."""

    def __init__(self, services: ScriptedServices) -> None:
        self.services = services
        self.runs: dict[str, str] = {}
        self.asked: dict[str, str] = {}
        self.calls: list[Sequence[verbs.CreateFlowRunRequest]] = []
        services.scripts["BatchCreateFlowRuns"] = self._create

    def _create(self, request: verbs.BatchCreateFlowRunsRequest, _: Any) -> verbs.BatchCreateFlowRunsResponse:
        self.calls.append(request.requests)
        return verbs.BatchCreateFlowRunsResponse(outcomes=map(self.outcome, request.requests))

    def outcome(self, request: verbs.CreateFlowRunRequest) -> verbs.BatchCreateFlowRunsOutcome:
        if request.name == "bad":
            message = "The request is invalid: parameters_json: 'x' is required"
            return refused(3, "INVALID_REQUEST", message)
        fresh = request.idempotency_key not in self.runs
        flow_run_id = self.runs.setdefault(request.idempotency_key, run_id(len(self.runs)))
        asked = self.asked.setdefault(flow_run_id, request.parameters_json)
        differing = [] if asked == request.parameters_json else ["parameters"]
        if differing and request.key_reuse == verbs.KEY_REUSE_REFUSE_IF_DIFFERENT:
            return refused(6, "KEY_REUSED", f"The key had created flow run {flow_run_id}")
        run = flow_run_pb2.FlowRun(flow_run_id=flow_run_id, name=request.name, flow_name="river")
        run.create_time.GetCurrentTime()
        return verbs.BatchCreateFlowRunsOutcome(
            response=verbs.CreateFlowRunResponse(flow_run=run, created=fresh, differing_fields=differing)
        )


def refused(code: int, reason: str, message: str) -> verbs.BatchCreateFlowRunsOutcome:
    return verbs.BatchCreateFlowRunsOutcome(refusal=verbs.Refusal(code=code, reason=reason, message=message))


@pytest.fixture
def backend(river: ScriptedServices) -> Backend:
    """A server that creates runs."""
    return Backend(river)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a batch is written."""
    return tmp_path / "runs.jsonl"


def write(file: Path, *lines: Any) -> None:
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))


async def sent(backend: Backend, file: Path, *options: str) -> Finished:
    return await penstock("run", "--batch", str(file), *options, PENSTOCK_ADDRESS=backend.services.address)


async def test_each_line_becomes_a_run(backend: Backend, file: Path) -> None:
    """Lines are sent in one call with keys of their own, names looked up once each, and summed up."""
    write(
        file,
        {"name": "one"},
        "",
        {"flow": "lake", "parameters": {"big": 2**53 + 1}},
        {"flow_id": "x"},
        {"flow": "lake"},
    )

    shown = await sent(backend, file, "--name", "river", "--resume", "b1")

    (call,) = backend.calls
    assert 4 == len({each.idempotency_key for each in call})
    assert all(each.idempotency_key.startswith("batch:b1:") for each in call)
    assert ["group", "group", "", "group"] == [each.flow_group_id for each in call]
    assert "x" == call[2].flow_id
    assert {"big": 2**53 + 1} == json.loads(call[1].parameters_json)
    assert 2 + 1 == len(backend.services.requests)  # two names, one call
    assert (0, "Created 4 flow runs; 0 existed already.\n") == (shown.code, shown.out)


async def test_the_id_of_a_batch_is_told_at_once(backend: Backend, file: Path) -> None:
    """A batch gets an id, told with the command that completes it, which then creates nothing twice."""
    write(file, *[{}] * 3)

    first = await sent(backend, file, "--name", "the river", "--project", "p")
    heading, command = first.err.splitlines()
    (batch_id,) = re.findall(r"^Batch (\w+) of 3 flow runs\.", heading)
    second = await sent(backend, file, "--name", "the river", "--project", "p", "--resume", batch_id)

    assert f"  penstock run --batch {file} --resume {batch_id} --name 'the river' --project p" == command
    assert "Created 3 flow runs; 0 existed already.\n" == first.out
    assert "Created 0 flow runs; 3 existed already.\n" == second.out
    assert 3 == len(backend.runs)


async def test_a_file_may_be_edited_between_two_tries(backend: Backend, file: Path) -> None:
    """Resumed with lines added, moved and edited, exactly the new ones are created; the others answer with their runs.

    Also where only ids are printed, what was done is told.
    """
    old = [{"parameters": {"x": x}} for x in (1, 2, 2, 3)]
    write(file, *old)
    begun = await sent(backend, file, "--name", "river", "--quiet", "--resume", "b")
    first, second, again, third = begun.out.splitlines()
    write(file, {"parameters": {"x": 0}}, "", old[3], old[1], {"parameters": {"x": 1.5}}, old[2], "", old[0])

    resumed = await sent(backend, file, "--name", "river", "--quiet", "--resume", "b")

    assert 0 == resumed.code, resumed.err
    assert [run_id(4), third, second, run_id(5), again, first] == resumed.out.splitlines()
    assert '{"x": 0}' == backend.asked[run_id(4)]
    assert '{"x": 1.5}' == backend.asked[run_id(5)]
    assert "Created 2 flow runs; 4 existed already.\n" in resumed.err


@pytest.mark.parametrize("option", ["", "--quiet", "--json"])
async def test_a_key_that_was_used_for_something_different_is_told(option: str, backend: Backend, file: Path) -> None:
    """A line whose own key had created a run with other input is listed with that run, whatever else is printed."""
    backend.runs["k"] = run_id(77)
    backend.asked[run_id(77)] = '{"x": 1}'
    write(file, {}, {"idempotency_key": "k", "parameters": {"x": 2}})

    shown = await sent(backend, file, "--name", "river", *filter(None, [option]))

    assert 0 == shown.code
    assert [
        "Created 1 flow runs; 1 existed already.",
        "Left as they are, although their lines ask something different now: 1:",
        f"  line 2: flow run {run_id(77)} differs in parameters",
    ] == (shown.err if option else shown.out).splitlines()[-3:]


async def test_a_key_that_was_used_for_something_different_may_be_refused(backend: Backend, file: Path) -> None:
    """With --refuse-different such a line is refused, and decides the exit code."""
    backend.runs["k"] = run_id(77)
    backend.asked[run_id(77)] = '{"x": 1}'
    write(file, {}, {"idempotency_key": "k", "parameters": {"x": 2}})

    shown = await sent(backend, file, "--name", "river", "--refuse-different")

    assert 1 == shown.code
    assert f"  line 2: KEY_REUSED: The key had created flow run {run_id(77)}" == shown.out.splitlines()[-1]


async def test_nothing_is_sent_if_a_line_is_bad(backend: Backend, file: Path) -> None:
    """Of a batch with a bad line nothing is sent, and nobody is asked anything."""
    write(file, {}, "{", {"nmae": "x"})

    shown = await sent(backend, file, "--name", "river")

    assert (2, "") == (shown.code, shown.out)
    assert shown.err.startswith("penstock: Nothing was sent:\n  line 2: is not JSON: ")
    assert "\n  line 3: has the unknown member 'nmae'" in shown.err
    assert not backend.services.requests


async def test_a_flow_that_is_not_there_is_a_bad_line(backend: Backend, file: Path) -> None:
    """Names are looked up before anything is sent; every line that names an unknown flow is listed."""
    answer = backend.services.scripts["LookUpFlow"]

    def look_up(request: Any, context: Any) -> Any:
        if request.name.name == "sea":
            raise FlowNotFound("'sea'")
        return answer(request, context)

    backend.services.scripts["LookUpFlow"] = look_up
    write(file, {"flow": "river"}, {"flow": "sea"}, {"flow": "sea"})

    shown = await sent(backend, file)

    assert 2 == shown.code
    assert "Nothing was sent:\n  line 2: There is no flow 'sea'.\n  line 3: There is no flow 'sea'.\n" in shown.err
    assert [] == backend.calls
    assert 2 == len(backend.services.requests)


async def test_calls_are_bounded_by_number_and_bytes(backend: Backend, file: Path) -> None:
    """No call carries more than 1,000 lines, or more bytes than fit."""
    write(file, *[{}] * 2_001, *[{"parameters": {"x": "y" * 1_000_000}}] * 4)

    shown = await sent(backend, file, "--name", "river")

    assert [1_000, 1_000, 4, 1] == [len(call) for call in backend.calls]
    assert (0, "Created 2,005 flow runs; 0 existed already.\n") == (shown.code, shown.out)


async def test_refused_lines_are_named(backend: Backend, file: Path) -> None:
    """What is refused is listed by line, reason and sentence, in the words of the file; the rest is created."""
    write(file, {}, {"name": "bad"}, {})

    shown = await sent(backend, file, "--name", "river")

    assert 1 == shown.code
    assert [
        "Created 2 flow runs; 0 existed already.",
        "Refused 1:",
        "  line 2: INVALID_REQUEST: The request is invalid: parameters: 'x' is required",
    ] == shown.out.splitlines()


async def test_very_many_refused_lines_are_counted(backend: Backend, file: Path) -> None:
    """A summary stays readable."""
    write(file, *[{"name": "bad"}] * 1_100)

    shown = await sent(backend, file, "--name", "river")

    assert 1 == shown.code
    assert 2 + 20 + 1 == len(shown.out.splitlines())
    assert "  … and 1,080 more." == shown.out.splitlines()[-1]


async def test_quiet_prints_the_ids_in_order(backend: Backend, file: Path) -> None:
    """A script gets an id per line, an empty line for each that was refused, and the summary beside them."""
    write(file, {}, {"name": "bad"}, "", {})

    shown = await sent(backend, file, "--name", "river", "--quiet")

    assert (1, f"{run_id(0)}\n\n{run_id(1)}\n") == (shown.code, shown.out)
    assert "line 2: INVALID_REQUEST" in shown.err


async def test_json_prints_an_outcome_per_line(backend: Backend, file: Path) -> None:
    """A program gets a document per line: what became of it, and the run or the refusal."""
    backend.runs["k"] = run_id(77)
    write(file, {}, {"name": "bad"}, {"idempotency_key": "k"})

    shown = await sent(backend, file, "--name", "river", "--json")

    first, second, third = map(json.loads, shown.out.splitlines())
    assert ("created", 1, run_id(1)) == (first["event"], first["line"], first["flow_run"]["flow_run_id"])
    # A batch is not told how its runs are treated, so nothing is said of it.
    assert not {"policy", "labels", "parameters", "trace_context"} & first["flow_run"].keys()
    assert ("refused", 2, "INVALID_REQUEST") == (second["event"], second["line"], second["refusal"]["reason"])
    assert ("existed", 3, run_id(77)) == (third["event"], third["line"], third["flow_run"]["flow_run_id"])


async def test_a_batch_may_come_from_the_input(backend: Backend) -> None:
    """With - the lines are read from standard input, and the command to resume says so."""
    async with running("run", "--batch", "-", PENSTOCK_ADDRESS=backend.services.address) as process:
        out, err = await process.communicate()

    assert 2 == process.returncode
    assert b"The batch holds no line that describes a run." in err
    command = Batch("-", "b", None, {}, quiet=True, as_json=False).resume_command
    assert "penstock run --batch - --resume b --quiet (with the same input)" == command
    assert b"" == out


async def test_a_batch_cannot_come_from_an_input_that_is_closed(river: ScriptedServices) -> None:
    """Where there is no standard input, a batch from it is refused in words."""
    shown = await penstock("run", "--batch", "-", closed=0, PENSTOCK_ADDRESS=river.address)

    assert (2, "") == (shown.code, shown.out)
    assert "penstock: Standard input is closed, and --batch - reads it.\n" == shown.err


@pytest.mark.parametrize("descriptor", [1, 2])
async def test_a_batch_needs_no_output(descriptor: int, backend: Backend, file: Path) -> None:
    """A command whose output or errors are closed does what it was asked."""
    write(file, {})

    shown = await penstock(
        *("run", "--batch", str(file), "--name", "river"), closed=descriptor, PENSTOCK_ADDRESS=backend.services.address
    )

    assert 0 == shown.code, shown.err
    assert 1 == len(backend.runs)


async def test_what_a_server_cannot_take_is_sent_again(backend: Backend, file: Path) -> None:
    """A call that is turned away, and items of one, are sent again until they are taken: only those."""
    troubles: Iterator[str] = iter(["call", "items"])

    def create(request: verbs.BatchCreateFlowRunsRequest, context: Any) -> verbs.BatchCreateFlowRunsResponse:
        match next(troubles, ""):
            case "call":
                raise Overloaded(timedelta(milliseconds=10))
            case "items":
                backend.calls.append(request.requests)
                busy = refused(14, "UNAVAILABLE", "This process cannot serve now.")
                first = backend.outcome(request.requests[0])
                return verbs.BatchCreateFlowRunsResponse(outcomes=[first, busy, busy])
        return backend._create(request, context)

    backend.services.scripts["BatchCreateFlowRuns"] = create
    write(file, {}, {}, {})

    shown = await sent(backend, file, "--name", "river", "--quiet", "--resume", "b")

    assert 0 == shown.code, shown.err
    first, second = ([each.idempotency_key for each in call] for call in backend.calls)
    assert 3 == len(set(first))
    assert first[1:] == second
    assert [run_id(0), run_id(1), run_id(2)] == shown.out.splitlines()


async def test_lost_contact_leaves_a_batch_to_be_resumed(
    backend: Backend, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """When the server stays away the rest is not attempted, and the command that completes the batch is told."""

    def create(request: verbs.BatchCreateFlowRunsRequest, context: Any) -> verbs.BatchCreateFlowRunsResponse:
        if backend.calls:
            raise Unavailable("it is draining")
        return backend._create(request, context)

    backend.services.scripts["BatchCreateFlowRuns"] = create
    write(file, *[{}] * 1_500)
    batch = Batch(str(file), "b", Target(name="river"), {}, quiet=False, as_json=False)

    async with AsyncClient(backend.services.address) as client:
        with pytest.raises(CommandFailed, match="Contact was lost: This process cannot serve now") as failed:
            await send_batch(client, batch, patience=timedelta(seconds=0.5))

    assert 4 == failed.value.exit_code
    assert [
        "Created 1,000 flow runs; 0 existed already.",
        "Not attempted, or without an answer: 500. Complete the batch with:",
        f"  penstock run --batch {file} --resume b --name river",
    ] == capsys.readouterr().out.splitlines()


async def test_ctrl_c_sums_up(backend: Backend, file: Path) -> None:
    """Who interrupts a batch learns how far it came and how to complete it."""
    reached = asyncio.Event()

    async def create(request: verbs.BatchCreateFlowRunsRequest, context: Any) -> Any:
        if backend.calls:
            reached.set()
            await asyncio.Event().wait()
        return backend._create(request, context)

    backend.services.scripts["BatchCreateFlowRuns"] = create
    write(file, *[{}] * 1_500)
    address = backend.services.address
    async with running("run", "--batch", str(file), "--name", "river", PENSTOCK_ADDRESS=address) as process:
        async with asyncio.timeout(30):
            await reached.wait()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()

    assert 130 == process.returncode
    assert out.decode().startswith(
        "Created 1,000 flow runs; 0 existed already.\nNot attempted, or without an answer: 500."
    )
    assert b"Traceback" not in err


async def test_a_person_sees_progress(backend: Backend, file: Path) -> None:
    """On a terminal a bar tells how far the batch is."""
    write(file, *[{}] * 1_500)

    async with at_a_terminal(
        *("run", "--batch", str(file), "--name", "river"), PENSTOCK_ADDRESS=backend.services.address
    ) as terminal:
        code = await terminal.ended()

    assert 0 == code
    assert "1500/1500" in terminal.shown
    assert "Created 1,500 flow runs; 0 existed already." in terminal.shown


async def test_a_killed_command_is_completed(server: RunningServer, file: Path) -> None:
    """A batch whose command was killed half-way is completed under its id: every line one run, on a real server."""
    registered = await penstock(
        *("register", "penstock.examples.hello_world", "--project", "examples"), **server.variables
    )
    assert 0 == registered.code, registered.err
    write(file, *[{"parameters": {"name": f"n{number}"}, "in": "1h"} for number in range(3_000)])
    command = ("run", "--batch", str(file), "--name", "hello-world", "--quiet")

    async with running(*command, **server.variables) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first_id = (await process.stdout.readline()).decode()  # the first call was answered
        heading = (await process.stderr.readline()).decode()
        process.kill()
        await process.communicate()
    (batch_id,) = re.findall(r"^Batch (\w+) of 3,000 flow runs\.", heading)
    completed = await penstock(*command[:-1], "--json", "--resume", batch_id, **server.variables)
    listed = await penstock("get", "flow-runs", "--limit", "5000", "--json", **server.variables)

    outcomes = list(map(json.loads, completed.out.splitlines()))
    ids = [each["flow_run"]["flow_run_id"] for each in outcomes]
    assert 0 == completed.code, completed.err
    assert {"created", "existed"} == {each["event"] for each in outcomes}
    assert first_id == f"{ids[0]}\n"
    assert 3_000 == len(set(ids))
    assert set(ids) == {json.loads(line)["flow_run_id"] for line in listed.out.splitlines()}
