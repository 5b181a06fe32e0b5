"""What a flow calls to run other flows: children that are made once, waiting, results."""

import asyncio
import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrun.v1 import flow_pb2, flow_run_pb2, flow_service_pb2, log_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from flowrun.v1 import log_service_pb2 as log_verbs
from penstock import tasks
from penstock.authoring import run as run_module
from penstock.authoring.run import current_flow_run
from penstock.client import (
    Client,
    DeadlineExceeded,
    FlowNameAmbiguous,
    FlowRunDeleted,
    FlowRunState,
    InvalidRequest,
    LeaseLost,
    NoLiveFlow,
    NotFound,
    PenstockError,
    Unauthenticated,
    Unavailable,
)
from penstock.client.flow_runs import flow_run_of
from penstock.domain import errors
from penstock.domain.flow import Flow
from penstock.domain.flow_run import Failure, FlowRun, Stopped, Succeeded
from penstock.domain.ids import FlowRunId
from penstock.domain.lease import Lease
from penstock.domain.limits import HELD_LEASE
from penstock.domain.state import State
from penstock.flow_run import flow_operations, operations
from penstock.keeper.orphans import cancel_orphans
from penstock.runtime import telemetry
from penstock.storage.database import Database
from penstock.tasks import FlowRunCancelled, FlowRunFailed, create_flow_run, get_flow_run_result, wait_for_flow_run
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run, a_step, some_lines, the_tail_end, the_watch_end
from tests.flow_run.served import serving
from tests.queue.scenes import (
    TENANT,
    at_work,
    cancel,
    create,
    execution_of,
    expire,
    finish,
    register,
    restart,
    run_of,
)
from tests.support.fake_clock import FakeClock

ROOT: Final = Path(__file__).parents[1]
WAIT_SECONDS: Final = 60
PARENT_ID: Final = str(UUID(int=7))


@pytest.fixture(autouse=True)
def _in_no_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test begins outside of runs, in a process that has made no call."""
    for name in [name for name in os.environ if name.startswith("PENSTOCK_") or name == "TRACEPARENT"]:
        monkeypatch.delenv(name)
    yield
    client = tasks._client_of(os.getpid()) if tasks._client_of.cache_info().currsize else None
    _begin_process(monkeypatch)
    if client is not None:
        client.close()


def _begin_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process would find: nothing of this one."""
    monkeypatch.setattr(tasks, "_places", tasks._Places())
    monkeypatch.setattr(run_module._body, "process", None)
    current_flow_run.cache_clear()
    tasks._client_of.cache_clear()


@dataclass
class Body:
    """This process as the body of a run: one attempt after the other."""

    monkeypatch: pytest.MonkeyPatch
    variables: dict[str, str]

    def begin(self, flow_run_id: object, fence: int = 1) -> None:
        """Be the next process, which executes that run under that fence."""
        _begin_process(self.monkeypatch)
        run_module.begin_body()
        for name, value in self.environment(flow_run_id, fence).items():
            self.monkeypatch.setenv(name, value)

    def environment(self, flow_run_id: object, fence: int = 1) -> dict[str, str]:
        return {
            **self.variables,
            "PENSTOCK_FLOW_RUN_ID": str(flow_run_id),
            "PENSTOCK_FENCE": str(fence),
            "PENSTOCK_ATTEMPT": "1",
            "PENSTOCK_FLOW_NAME": "parent",
            "PENSTOCK_FLOW_RUN_NAME": "brave-otter",
        }


@pytest.fixture
def body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Body:
    """This process, before it is told which run it is the body of."""
    (tmp_path / "nothing.json").write_text("{}")
    files = {f"PENSTOCK_{each}_FILE": str(tmp_path / "nothing.json") for each in ("PARAMETERS", "CONTEXT")}
    return Body(monkeypatch, files)


@dataclass
class House:
    """A flow-run service on a database, which this process finds, and a flow to make children of."""

    database: Database
    flow: Flow
    body: Body

    async def parent(self) -> Lease:
        """Be the body of a run at work."""
        run = await create(self.database, await register(self.database, name="parent"), name="brave-otter")
        lease = (await at_work(self.database, run.id)).lease
        self.body.begin(run.id, lease.fence)
        return lease

    async def run(self, flow_run_id: str) -> FlowRun:
        return await run_of(self.database, FlowRunId(UUID(flow_run_id)))

    async def end(self, flow_run_id: str, outcome: Succeeded | Failure | Stopped) -> None:
        """Let that run be executed, and end so."""
        work = await at_work(self.database, FlowRunId(UUID(flow_run_id)))
        assert isinstance(await finish(self.database, work.lease, work.execution_id, outcome), FlowRun)


@pytest.fixture
async def house(database: Database, body: Body, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """Real services on either database."""
    async with serving(database) as process:
        body.variables["PENSTOCK_FLOW_RUN_ADDRESS"] = process.address
        monkeypatch.setenv("PENSTOCK_FLOW_RUN_ADDRESS", process.address)
        flow = await register(database, name="child", project_name="coast", accepts_extra_parameters=True)
        yield House(database, flow, body)


FAILED: Final = Failure(type="ValueError", message="no such river", traceback="", exit_code=1, signal=None)


async def test_what_a_run_creates_is_its_child(house: House) -> None:
    """The child names its parent, is named after it, bears a key that begins with it, and is part of its trace."""
    parent = await house.parent()
    traceparent = telemetry.new_traceparent()
    house.body.monkeypatch.setenv("TRACEPARENT", traceparent)

    child = await house.run(await asyncio.to_thread(create_flow_run, flow_name="child", parameters={"day": "monday"}))

    assert parent.flow_run_id == child.parent_id
    assert "brave-otter-child" == child.name
    assert str(child.idempotency_key).startswith(f"{parent.flow_run_id}/")
    assert telemetry.trace_id_of(traceparent) == telemetry.trace_id_of(child.traceparent)
    assert {"day": "monday"} == json.loads(child.parameters_json)


async def test_outside_of_runs_a_run_is_just_created(house: House) -> None:
    """Without a parent there is no key, so that each call makes a run."""
    first, second = [await asyncio.to_thread(create_flow_run, flow_name="child") for _ in range(2)]

    assert first != second
    run = await house.run(first)
    assert (None, None) == (run.parent_id, run.idempotency_key)


async def test_a_flow_may_be_meant_in_any_way(house: House) -> None:
    """By the id of a flow or of its group, by its name, with its project where that is needed."""
    flow, group = str(house.flow.id), str(house.flow.group_id)
    await register(house.database, name="child", project_name="inland")
    ways: list[dict[str, str]] = [
        {"flow_id": flow},
        {"flow_id": flow.upper()},
        {"flow_id": group},
        {"flow_group_id": group},
        {"flow_name": "child", "project": "coast"},
        {"flow_name": "child", "project_name": "coast"},
    ]

    found = [await house.run(await asyncio.to_thread(create_flow_run, **way)) for way in ways]

    assert [house.flow.id] * len(ways) == [run.flow_id for run in found]
    with pytest.raises(FlowNameAmbiguous, match="coast, inland"):
        await asyncio.to_thread(create_flow_run, flow_name="child")
    with pytest.raises(NotFound, match="There is no flow"):
        await asyncio.to_thread(create_flow_run, flow_name="chidl")


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ({}, "target: exactly one of flow_id, flow_name, flow_group_id must be given"),
        ({"flow_id": "a", "flow_name": "b"}, "target: exactly one of"),
        ({"flow_id": "a", "project": "coast"}, "project: goes with flow_name"),
    ],
)
def test_a_flow_is_meant_in_one_way(way: dict[str, str], words: str) -> None:
    """No flow, or two, are refused before any call."""
    with pytest.raises(InvalidRequest, match=words):
        create_flow_run(**way)  # type: ignore[arg-type]


async def test_everything_a_creation_may_say_arrives(house: House) -> None:
    """What is said of a child goes before what its flow says; a name of its own before the one it would be given."""
    await house.parent()

    child = await house.run(
        await asyncio.to_thread(
            create_flow_run,
            str(house.flow.id),
            flow_run_name="tide",
            context={"why": "test"},
            labels=["gpu"],
            run_config=tasks.RunConfig(image="new"),
            scheduled_start_time=timedelta(hours=1),
            idempotency_key="mine",
            child_policy=tasks.ChildPolicy.ABANDON,
            log_level=tasks.LogLevel.DEBUG,
            max_retries=3,
            retry_delay=5,
        )
    )

    assert ("tide", "mine", ("gpu",), "new") == (
        child.name,
        child.idempotency_key,
        child.labels,
        child.run_config.image,
    )
    assert {"why": "test"} == json.loads(child.context_json)
    assert timedelta(hours=1) == child.scheduled_start_time - child.create_time
    policy = child.policy
    assert (3, timedelta(seconds=5), "ABANDON", "DEBUG") == (
        policy.max_retries,
        policy.retry_delay,
        policy.child_policy.name,
        policy.log_level.name,
    )


async def test_a_name_that_would_be_too_long_is_left_to_the_server(house: House) -> None:
    """A parent with a name of any length may have children."""
    await house.parent()
    house.body.monkeypatch.setenv("PENSTOCK_FLOW_RUN_NAME", "x" * 250)

    child = await house.run(await asyncio.to_thread(create_flow_run, flow_name="child"))

    assert not child.name.startswith("x")


@pytest.mark.slow
async def test_a_parent_that_is_executed_again_finds_its_children(house: House, tmp_path: Path) -> None:
    """Killed after the first of three, and begun again by another process: three children, each once."""
    lease = await house.parent()
    script = tmp_path / "parent.py"
    script.write_text(
        "import os\n"
        "from penstock.tasks import create_flow_run\n\n\n"
        "def parent(children, stop_after):\n"
        "    for number in range(3):\n"
        "        with open(children, 'a') as file:\n"
        "            print(create_flow_run(flow_name='child', parameters={'number': number}), file=file)\n"
        "        if number == stop_after:\n"
        "            os._exit(1)\n"
    )

    (only,) = await _executed(house, lease, script, stop_after=0)
    second = await _executed(house, lease, script, stop_after=9)
    script.write_text("# Another first line.\n" + script.read_text())
    third = await _executed(house, lease, script, stop_after=9)

    assert only == second[0]
    assert second == third
    assert [0, 1, 2] == [json.loads((await house.run(child)).parameters_json)["number"] for child in third]
    key = (await house.run(only)).idempotency_key
    assert f"{lease.flow_run_id}/parent.py:parent+3#0" == key


@pytest.mark.slow
async def test_what_a_body_starts_or_forks_has_children_of_its_own(house: House, tmp_path: Path) -> None:
    """A program of a flow, and a fork, never get the child of a sibling; executed again, each finds its own."""
    lease = await house.parent()
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, subprocess, sys\n"
        "from penstock.tasks import create_flow_run\n\n\n"
        "def create(children, number):\n"
        "    with open(children, 'a') as file:\n"
        "        print(create_flow_run(flow_name='child', parameters={'number': number}), file=file)\n\n\n"
        "def parent(children):\n"
        "    for number in range(2):\n"
        "        subprocess.run([sys.executable, __file__, children, str(number)], check=True)\n"
        "    for number in range(2, 4):\n"
        "        if (child := os.fork()) == 0:\n"
        "            create(children, number)\n"
        "            os._exit(0)\n"
        "        os.waitpid(child, 0)\n"
        "    create(children, 4)\n\n\n"
        "if __name__ == '__main__':\n"
        "    create(sys.argv[1], int(sys.argv[2]))\n"
    )

    first, second = await _executed(house, lease, script), await _executed(house, lease, script)

    assert first == second
    assert [0, 1, 2, 3, 4] == [json.loads((await house.run(child)).parameters_json)["number"] for child in first]


async def _executed(house: House, lease: Lease, script: Path, **parameters: Any) -> list[str]:
    """The children of a process that is the body of that run, as a supervisor would start it."""
    children, told = script.with_suffix(".children"), script.with_suffix(".json")
    children.write_text("")
    told.write_text(json.dumps({"children": str(children), **parameters}))
    environment = house.body.environment(lease.flow_run_id, lease.fence) | {"PENSTOCK_PARAMETERS_FILE": str(told)}
    records = os.open(os.devnull, os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "penstock.authoring.execute",
        f"{script}:parent",
        str(records),
        stdin=asyncio.subprocess.PIPE,
        pass_fds=[records],
        env=_environment(environment),
    )
    os.close(records)
    await asyncio.wait_for(process.communicate(f"{telemetry.new_traceparent()} \n".encode()), WAIT_SECONDS)
    return children.read_text().split()


def _environment(variables: dict[str, str]) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT / "services"), str(ROOT / "gen" / "python")])
    return {"PATH": os.environ["PATH"], "PYTHONPATH": paths, **variables}


async def test_a_child_is_found_whatever_became_of_its_flow(house: House) -> None:
    """A new version, or none any more, makes no second child of the same call; a new child is then refused."""
    lease = await house.parent()
    first = await asyncio.to_thread(create_flow_run, flow_name="child")
    newer = await register(house.database, name="child", project_name="coast", source_digest="newer")
    house.body.begin(lease.flow_run_id, lease.fence)

    assert first == await asyncio.to_thread(create_flow_run, flow_name="child")

    await house.database.run(flow_operations.archive_flow, TENANT, newer.id)
    house.body.begin(lease.flow_run_id, lease.fence)

    assert first == await asyncio.to_thread(create_flow_run, flow_name="child")
    with pytest.raises(NoLiveFlow):
        await asyncio.to_thread(create_flow_run, flow_name="child")


@pytest.mark.parametrize("end", [State.FAILED, State.CANCELLED])
async def test_a_failed_child_is_attempted_again_if_that_is_asked(house: House, end: State) -> None:
    """A parent that is executed again finds the child as it is; or it asks for a new attempt of it, and gets one."""
    lease = await house.parent()
    child = await asyncio.to_thread(create_flow_run, flow_name="child")
    if end is State.FAILED:
        await house.end(child, FAILED)
    else:
        await cancel(house.database, FlowRunId(UUID(child)))

    house.body.begin(lease.flow_run_id, lease.fence)
    assert child == await asyncio.to_thread(create_flow_run, flow_name="child")
    assert end is (await house.run(child)).state

    house.body.begin(lease.flow_run_id, lease.fence)
    assert child == await asyncio.to_thread(create_flow_run, flow_name="child", retry_failed=True)
    again = await house.run(child)
    assert (State.SCHEDULED, 2) == (again.state, again.attempt)

    house.body.begin(lease.flow_run_id, lease.fence)
    await asyncio.to_thread(create_flow_run, flow_name="child", retry_failed=True)
    assert again == await house.run(child)


async def test_a_child_that_went_with_its_parent_comes_again_with_it(house: House) -> None:
    """What nobody but its parent's end cancelled is attempted again by the parent's next attempt, unasked."""
    parent = await house.parent()
    child = await asyncio.to_thread(create_flow_run, flow_name="child")
    await cancel(house.database, parent.flow_run_id)
    await cancel_orphans(house.database, TENANT)
    assert State.CANCELLED is (await house.run(child)).state
    stopping = await execution_of(house.database, parent)
    stopped = await finish(house.database, parent, stopping.execution_id, Stopped())
    assert isinstance(stopped, FlowRun)
    await restart(house.database, stopped)
    lease = (await at_work(house.database, parent.flow_run_id)).lease

    house.body.begin(lease.flow_run_id, lease.fence)
    assert child == await asyncio.to_thread(create_flow_run, flow_name="child")

    again = await house.run(child)
    assert (State.SCHEDULED, 2) == (again.state, again.attempt)


async def test_siblings_are_told_apart_by_their_names(house: House) -> None:
    """The children that one line makes in a loop are numbered."""
    await house.parent()

    children = [await asyncio.to_thread(create_flow_run, flow_name="child", parameters={"x": 1}) for _ in range(2)]

    assert ["brave-otter-child", "brave-otter-child-2"] == [(await house.run(child)).name for child in children]


@pytest.mark.parametrize(
    ("outcome", "state", "attempt"),
    [(Stopped(), State.SCHEDULED, 2), (Succeeded(), State.SUCCEEDED, 1)],
)
async def test_a_child_that_is_being_cancelled_is_waited_for_before_it_is_attempted_again(
    house: House, outcome: Stopped | Succeeded, state: State, attempt: int
) -> None:
    """Its new attempt begins when the old one has stopped; if that succeeded after all, it is left alone."""
    parent = await house.parent()
    child = await asyncio.to_thread(create_flow_run, flow_name="child")
    work = await at_work(house.database, FlowRunId(UUID(child)))
    await cancel(house.database, FlowRunId(UUID(child)))
    assert State.CANCELLING is (await house.run(child)).state
    house.body.begin(parent.flow_run_id, parent.fence)
    watching = asyncio.Event()
    loop, follow = asyncio.get_running_loop(), tasks._followed

    def followed(*args: Any, **kwargs: Any) -> Any:
        loop.call_soon_threadsafe(watching.set)
        return follow(*args, **kwargs)

    house.body.monkeypatch.setattr(tasks, "_followed", followed)
    asking = asyncio.create_task(asyncio.to_thread(create_flow_run, flow_name="child", retry_failed=True))
    beginning = asyncio.create_task(watching.wait())
    await asyncio.wait({asking, beginning}, timeout=WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    assert not asking.done()

    assert isinstance(await finish(house.database, work.lease, work.execution_id, outcome), FlowRun)

    assert child == await asyncio.wait_for(asking, WAIT_SECONDS)
    run = await house.run(child)
    assert (state, attempt) == (run.state, run.attempt)


async def test_a_child_that_succeeded_is_never_attempted_again(house: House) -> None:
    """Asking again for what failed leaves alone what did not."""
    lease = await house.parent()
    child = await asyncio.to_thread(create_flow_run, flow_name="child")
    await house.end(child, Succeeded("1"))
    house.body.begin(lease.flow_run_id, lease.fence)

    await asyncio.to_thread(create_flow_run, flow_name="child", retry_failed=True)

    assert State.SUCCEEDED is (await house.run(child)).state


async def test_a_parent_that_was_overtaken_makes_no_children(house: House, clock: FakeClock) -> None:
    """Whoever lost the lease is told so, also here."""
    lease = await house.parent()
    clock.advance(HELD_LEASE + timedelta(seconds=1))
    await expire(house.database)

    with pytest.raises(LeaseLost, match=f"on flow run {lease.flow_run_id} is no longer held; stop working on it"):
        await asyncio.to_thread(create_flow_run, flow_name="child")


async def test_a_child_found_with_other_wishes_is_told_of(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """An explicit key that made something else returns it, and the log says in what it differs."""
    caplog.set_level(logging.INFO)
    first = await asyncio.to_thread(create_flow_run, flow_name="child", idempotency_key="k", labels=["a"])

    second = await asyncio.to_thread(create_flow_run, flow_name="child", idempotency_key="k", labels=["b"])

    assert first == second
    created, found = [record for record in caplog.records if record.name == "penstock.flow"]
    assert "Created flow run" in created.message
    assert ("WARNING", True) == (found.levelname, "was created with other labels than are asked" in found.message)


class Creations:
    """Stands in for the services: every call makes a child, and the keys are kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[str] = []
        # What the next calls of an rpc fail with; None is for those that succeed.
        self.failures: dict[str, deque[PenstockError | None]] = {"LookUpFlow": deque(), "CreateFlowRun": deque()}
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(tasks, "_client", lambda: SimpleNamespace(ask=self._answer))

    def of(self, *bodies: Callable[[], object]) -> list[str]:
        """The keys of the children of a process that executes these one after the other."""
        self._monkeypatch.setattr(tasks, "_places", tasks._Places())
        self.keys.clear()
        for each in bodies:
            each()
        return list(self.keys)

    def _answer(self, call: Any) -> Any:
        if call.rpc == "CreateFlowRun":
            self.keys.append(call.request.idempotency_key)
        if (failures := self.failures[call.rpc]) and (failure := failures.popleft()):
            raise failure
        if call.rpc == "CreateFlowRun":
            return call.answer(verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True))
        flow = flow_pb2.Flow(flow_id="flow", flow_group_id="group", name="child")
        flow.create_time.FromJsonString("2026-03-01T10:00:00Z")
        return call.answer(flow_service_pb2.LookUpFlowResponse(flow=flow))


@pytest.fixture
def made(body: Body, monkeypatch: pytest.MonkeyPatch) -> Creations:
    """In the body of a run."""
    body.begin(PARENT_ID)
    return Creations(monkeypatch)


def a_child(**wishes: Any) -> str:
    return create_flow_run(flow_name="child", **wishes)


def in_a_loop() -> None:
    for _ in range(3):
        create_flow_run(flow_name="child")


def at_two_sites() -> None:
    create_flow_run(flow_name="child")
    create_flow_run(flow_name="child")


def deep_down(depth: int = 3) -> None:
    if depth:
        create_flow_run(flow_name="child")
        deep_down(depth - 1)


def in_comprehensions() -> None:
    _ = [create_flow_run(flow_name="child") for _ in range(2)]
    _ = {number: create_flow_run(flow_name="child") for number in range(2)}
    _ = list(create_flow_run(flow_name="child") for _ in range(1))  # noqa: C400 - that it is a generator is the point


@pytest.mark.parametrize(
    ("code", "places"),
    [
        (in_a_loop, ["in_a_loop+2#0", "in_a_loop+2#1", "in_a_loop+2#2"]),
        (at_two_sites, ["at_two_sites+1#0", "at_two_sites+2#0"]),
        (
            in_comprehensions,
            [f"in_comprehensions+{place}" for place in ("1#0", "1#1", "2#0", "2#1", "3#0")],
        ),
        (deep_down, ["deep_down+2#0", "deep_down+2#1", "deep_down+2#2"]),
    ],
)
def test_a_key_is_a_place_and_how_often_it_was_come_to(
    code: Callable[[], None], places: list[str], made: Creations
) -> None:
    """Loops, several calls and recursion each make their own children, and the same ones again."""
    keys = made.of(code)

    assert [f"{PARENT_ID}/test_tasks.py:{place}" for place in places] == keys
    assert keys == made.of(code)


def test_calls_of_another_run_have_other_keys(made: Creations, body: Body) -> None:
    """Two runs of one flow share no children."""
    keys = made.of(in_a_loop)
    body.begin(UUID(int=8))

    assert not set(keys) & set(made.of(in_a_loop))


def test_what_is_edited_elsewhere_changes_no_key(made: Creations) -> None:
    """The line counts within its function alone."""
    source = "def parent():\n    create_flow_run(flow_name='child')\n"
    keys = []
    for above in ("", "import os\n\n\ndef other():\n    pass\n\n\n"):
        scope: dict[str, Any] = {"create_flow_run": create_flow_run}
        exec(compile(above + source, "/some/where/flows.py", "exec"), scope)
        keys += made.of(scope["parent"])

    assert [f"{PARENT_ID}/flows.py:parent+1#0"] * 2 == keys


@pytest.mark.parametrize("name", ["long" * 80, "größe"])
def test_a_place_that_makes_no_key_is_digested(name: str, made: Creations) -> None:
    """However a function is called, its children have keys that the contract takes."""
    scope: dict[str, Any] = {"create_flow_run": create_flow_run}
    exec(f"def {name}():\n    create_flow_run(flow_name='child')\n", scope)

    (first,), (second,) = made.of(scope[name]), made.of(scope[name])

    assert first == second
    assert (True, True) == (first.isascii(), len(first) <= 255)


@given(calls=st.lists(st.integers(0, 3), max_size=30), cut=st.integers(0, 30))
def test_an_execution_finds_the_children_of_the_one_before(calls: list[int], cut: int) -> None:
    """Wherever the first one was cut off, the second begins with its keys, and no key comes twice."""
    sites = [lambda: a_child(), lambda: a_child(), lambda: a_child(), at_two_sites]
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = Creations(monkeypatch)
        monkeypatch.setattr(tasks, "_current_run", lambda: SimpleNamespace(id=PARENT_ID, fence=1, name="x"))
        monkeypatch.setattr(tasks, "is_body", lambda: True)

        cut_off = made.of(*(sites[call] for call in calls[:cut]))
        whole = made.of(*(sites[call] for call in calls))

    assert cut_off == whole[: len(cut_off)]
    assert len(set(whole)) == len(whole)


def _in_threads(numbers: list[int]) -> None:
    """Ask for children in threads that run one after the other, in this order."""
    for number in numbers:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(a_child, parameters={"number": number}).result()


def test_threads_find_their_children_in_whichever_order_they_come(made: Creations) -> None:
    """Where the order is an accident, a child is told by what was asked; equal wishes by their count."""
    first = made.of(lambda: _in_threads([1, 2, 2, 3]))
    second = made.of(lambda: _in_threads([3, 2, 1, 2]))

    assert 4 == len(set(first))
    assert [first[3], first[1], first[0], first[2]] == second


def test_a_wish_in_a_thread_is_not_its_name_nor_its_time(made: Creations) -> None:
    """What honest repeats compute anew has no part in the key."""

    def ask(**wishes: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(a_child, **wishes).result()

    first = made.of(lambda: ask(flow_run_name="one", scheduled_start_time=timedelta(seconds=1)))
    second = made.of(lambda: ask(flow_run_name="two"))
    third = made.of(lambda: ask(labels=["gpu"]))

    assert first == second
    assert first != third


async def test_coroutines_find_their_children_in_whichever_order_they_come(made: Creations) -> None:
    """Also where they call without a thread in between, and where a thread is all there is around the call."""

    async def together(*numbers: int) -> list[str]:
        made.of()
        for number in numbers:
            await asyncio.to_thread(create_flow_run, flow_name="child", parameters={"number": number})
            a_child(parameters={"number": number})
        return list(made.keys)

    first, second = await together(1, 2), await together(2, 1)

    assert 4 == len(set(first))
    assert first == second[2:] + second[:2]


def test_threads_at_once_share_no_key(made: Creations) -> None:
    """Counting is safe between threads."""
    begin = threading.Barrier(8)

    def ask(_: int) -> None:
        begin.wait(WAIT_SECONDS)
        for _ in range(25):
            a_child()

    def all_at_once() -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))

    assert 200 == len(set(made.of(all_at_once)))


def test_a_process_that_is_no_body_is_told_by_what_it_asks(monkeypatch: pytest.MonkeyPatch, made: Creations) -> None:
    """A command, and what a body starts, counts for itself: its order alone would give different children one key."""
    monkeypatch.setattr(run_module._body, "process", os.getppid())

    (first,) = made.of(lambda: a_child(parameters={"number": 1}))
    (second,) = made.of(lambda: a_child(parameters={"number": 2}))

    assert first != second
    assert [first] == made.of(lambda: a_child(parameters={"number": 1}))


def test_a_fork_counts_for_itself() -> None:
    """What its parent asked before has no part in it, nor what a thread was busy with at that moment."""
    code = (
        "import os\n"
        "from penstock import tasks\n"
        "def show():\n"
        "    with tasks._places.key('run', 'site', 'wish') as key:\n"
        "        print(key, flush=True)\n"
        "show()\n"
        "tasks._places._lock.acquire()\n"
        "if os.fork() == 0:\n"
        "    show()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )

    shown = subprocess.run(
        [sys.executable, "-c", code], env=_environment({}), stdout=subprocess.PIPE, timeout=WAIT_SECONDS, check=True
    )

    assert ["run/site=wish#0"] * 2 == shown.stdout.decode().split()


def test_a_wish_is_told_in_one_form(made: Creations) -> None:
    """In whichever order a set gave out the names and the labels, it is the same wish; another value is another."""

    def ask(**wishes: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(a_child, **wishes).result()

    one = made.of(lambda: ask(parameters={"a": {"b": 1, "c": 2}, "d": 3}, context={"e": 1, "f": 2}, labels=["g", "h"]))
    same = made.of(
        lambda: ask(parameters={"d": 3, "a": {"c": 2, "b": 1}}, context={"f": 2, "e": 1}, labels=["h", "g", "h"])
    )
    other = made.of(
        lambda: ask(parameters={"a": {"b": 2, "c": 2}, "d": 3}, context={"e": 1, "f": 2}, labels=["g", "h"])
    )

    assert one == same
    assert one != other


def test_a_wish_that_the_server_will_refuse_is_told_all_the_same(made: Creations) -> None:
    """What is wrong with it is the server's to say, in its words."""
    assert 1 == len(made.of(lambda: a_child(parameters={"twins": {1: "a", "1": "b"}})))


NO_ANSWER: Final = DeadlineExceeded("The Penstock server did not answer in time.")


def _ask_for_each(*wishes: str) -> None:
    """Ask at one place, whatever becomes of it."""
    for wish in wishes:
        with contextlib.suppress(PenstockError):
            a_child(parameters={"wish": wish})


def test_a_call_that_failed_is_made_again_by_the_same_wish(made: Creations, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer may have been lost: asked again it finds that child, and what is asked in between has its own."""
    monkeypatch.setattr(tasks, "PATIENCE", timedelta(0))
    undisturbed = made.of(lambda: _ask_for_each("a", "b", "a", "c"))
    made.failures["CreateFlowRun"].extend([NO_ANSWER, NO_ANSWER, None])

    disturbed = made.of(lambda: _ask_for_each("a", "a", "b", "a", "a", "c"))

    a, b, a_again, c = undisturbed
    assert [a, a, b, a, a_again, c] == disturbed


def test_a_call_counts_even_if_its_flow_could_not_be_looked_up(
    made: Creations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next execution, whose services are there, would take the child of the next call for that of this."""
    monkeypatch.setattr(tasks, "PATIENCE", timedelta(0))
    undisturbed = made.of(lambda: _ask_for_each("a", "b"))
    made.failures["LookUpFlow"].append(NO_ANSWER)

    assert undisturbed[1:] == made.of(lambda: _ask_for_each("a", "b"))


def test_a_child_that_was_deleted_keeps_its_number(made: Creations) -> None:
    """The next call with the same wish is for a child of its own, and not refused for ever."""
    undisturbed = made.of(lambda: _ask_for_each("a", "a"))
    made.failures["CreateFlowRun"].append(FlowRunDeleted("It was deleted."))

    assert undisturbed == made.of(lambda: _ask_for_each("a", "a"))


async def test_waiting_shows_each_state_and_returns_the_run(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """States are told as they come, once each and in order, through the flow's logger."""
    caplog.set_level(logging.INFO)
    await house.parent()
    child = await asyncio.to_thread(create_flow_run, flow_name="child")
    waiting = asyncio.create_task(asyncio.to_thread(wait_for_flow_run, child))

    await house.end(child, Succeeded('{"rows": 3}'))
    ended = await asyncio.wait_for(waiting, WAIT_SECONDS)

    assert (child, FlowRunState.SUCCEEDED, {"rows": 3}) == (ended.flow_run_id, ended.state, ended.result)
    said = [record.message for record in caplog.records if record.name == "parent"]
    assert [
        f"Flow run 'brave-otter-child' entered state {state}"
        for state in ("SCHEDULED", "SUBMITTED", "RUNNING", "SUCCEEDED")
    ] == [message for message in said if "entered state" in message]


async def test_waiting_may_be_silent(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """States that nobody asked for are not told."""
    child = await asyncio.to_thread(create_flow_run, flow_name="child")
    await house.end(child, Succeeded())
    caplog.clear()
    caplog.set_level(logging.INFO)

    await asyncio.to_thread(wait_for_flow_run, child, stream_states=False)

    assert [] == [record for record in caplog.records if record.name == "penstock.flow"]


@pytest.mark.parametrize(
    ("outcome", "state", "kind", "words"),
    [
        (FAILED, FlowRunState.FAILED, FlowRunFailed, r"ended as FAILED: ValueError: no such river$"),
        (None, FlowRunState.CANCELLED, FlowRunCancelled, r"ended as CANCELLED\.$"),
    ],
)
async def test_a_run_that_did_not_succeed_is_an_error_if_that_is_asked(
    house: House, outcome: Failure | None, state: FlowRunState, kind: type[FlowRunFailed], words: str
) -> None:
    """The error names the run and why, and carries it; without asking, the run is just returned."""
    child = await asyncio.to_thread(create_flow_run, flow_name="child", flow_run_name="tide")
    if outcome is None:
        await cancel(house.database, FlowRunId(UUID(child)))
    else:
        await house.end(child, outcome)

    assert state is (await asyncio.to_thread(wait_for_flow_run, child)).state
    with pytest.raises(FlowRunFailed, match=rf"^Flow run 'tide' \({child}\) of flow 'child' {words}") as raised:
        await asyncio.to_thread(wait_for_flow_run, child, raise_final_state=True)
    with pytest.raises(FlowRunFailed):
        await asyncio.to_thread(get_flow_run_result, child)

    assert kind is type(raised.value)
    assert (child, state) == (raised.value.flow_run.flow_run_id, raised.value.flow_run.state)
    assert str(raised.value) == str(pickle.loads(pickle.dumps(raised.value)))


def test_a_cancelled_run_does_not_tell_of_an_attempt_before() -> None:
    """The failure that was retried is not why the run ended."""
    run = flow_run_of(
        a_flow_run(
            state=flow_run_pb2.FLOW_RUN_STATE_CANCELLED,
            failure=flow_run_pb2.Failure(type="ValueError", message="no such river"),
        )
    )

    assert str(FlowRunCancelled(run)).endswith("ended as CANCELLED.")


@pytest.mark.parametrize(
    ("result_json", "result"),
    [
        ('{"big": 9007199254740993, "whole": 2, "half": 0.5}', {"big": 2**53 + 1, "whole": 2, "half": 0.5}),
        ("[]", []),
        ("0", 0),
        (None, None),
    ],
)
async def test_a_result_is_what_was_returned(house: House, result_json: str | None, result: object) -> None:
    """Numbers are what they were, to the last digit and by their kind."""
    child = await asyncio.to_thread(create_flow_run, flow_name="child")
    getting = asyncio.create_task(asyncio.to_thread(get_flow_run_result, child))
    await house.end(child, Succeeded(result_json))

    found = await asyncio.wait_for(getting, WAIT_SECONDS)

    assert result == found
    assert json.dumps(result) == json.dumps(found)


async def test_a_run_that_does_not_exist_is_not_waited_for(house: House) -> None:
    """Nor is one that is deleted."""
    with pytest.raises(NotFound, match=f"There is no flow run {RUN_ID}"):
        await asyncio.to_thread(wait_for_flow_run, RUN_ID)

    child = await asyncio.to_thread(create_flow_run, flow_name="child")
    await cancel(house.database, FlowRunId(UUID(child)))
    await house.database.run(operations.delete_flow_run, TENANT, FlowRunId(UUID(child)))
    with pytest.raises(NotFound, match=f"There is no flow run {child}"):
        await asyncio.to_thread(get_flow_run_result, child)


@pytest.fixture
async def services(body: Body, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedServices]:
    """Services that answer as they are told, and that this process finds."""
    async with ScriptedServices() as running:
        monkeypatch.setenv("PENSTOCK_ADDRESS", running.address)
        body.variables["PENSTOCK_ADDRESS"] = running.address
        running.scripts["GetFlowRun"] = lambda *_: verbs.GetFlowRunResponse(flow_run=a_flow_run())
        running.scripts["WatchFlowRun"] = _watched_to_the_end
        yield running


async def _watched_to_the_end(request: Any, context: Any) -> None:
    await context.write(the_watch_end())


async def test_services_that_are_away_are_waited_for(
    services: ScriptedServices, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A break that outlasts every patience is told of, and goes on from the last step that was seen."""
    seen: list[int] = []

    async def watch(request: Any, context: Any) -> None:
        seen.append(request.after_version)
        if len(seen) == 1:
            await context.write(a_step(2))
        if len(seen) < 8:
            raise errors.Unavailable("it is draining")
        await context.write(a_step(3))
        await context.write(the_watch_end())

    services.scripts["WatchFlowRun"] = watch
    impatient = Client(services.address, patience=timedelta(milliseconds=1))
    monkeypatch.setattr(tasks, "_client", lambda: impatient)
    with impatient:
        ended = await asyncio.wait_for(asyncio.to_thread(wait_for_flow_run, RUN_ID), WAIT_SECONDS)

    assert FlowRunState.SUCCEEDED is ended.state
    assert [0, *[2] * 7] == seen
    assert "There is no news of flow run 'quiet-otter'; waiting on. This process cannot serve now: it is draining" in (
        caplog.text
    )


@pytest.mark.parametrize("inside", [True, False])
async def test_services_may_be_away_when_the_wait_begins(
    inside: bool, body: Body, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever waits is told so at once, and of the run when they are there."""
    monkeypatch.setenv("PENSTOCK_ADDRESS", f"127.0.0.1:{unused_tcp_port}")
    if inside:
        body.begin(PARENT_ID)
    told = asyncio.Event()
    loop, tell = asyncio.get_running_loop(), tasks._tell_of_silence

    def tell_of_silence(*args: Any) -> None:
        tell(*args)
        loop.call_soon_threadsafe(told.set)

    monkeypatch.setattr(tasks, "_tell_of_silence", tell_of_silence)
    waiting = asyncio.create_task(asyncio.to_thread(wait_for_flow_run, RUN_ID))
    telling = asyncio.create_task(told.wait())
    await asyncio.wait({waiting, telling}, timeout=WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    assert f"no news of flow run '{RUN_ID}'; waiting on. No Penstock server answers at 127.0.0.1" in caplog.text

    async with ScriptedServices(port=unused_tcp_port) as services:
        services.scripts["GetFlowRun"] = lambda *_: verbs.GetFlowRunResponse(flow_run=a_flow_run())
        services.scripts["WatchFlowRun"] = _watched_to_the_end
        ended = await asyncio.wait_for(waiting, WAIT_SECONDS)

    assert FlowRunState.SUCCEEDED is ended.state


async def test_a_log_is_shown_as_it_is_written(services: ScriptedServices, caplog: pytest.LogCaptureFixture) -> None:
    """Each line keeps its level and bears the name of its run; output without a level is information."""
    lines = some_lines("hello", "careful", "printed")
    lines.lines.lines[1].level = log_pb2.LOG_LEVEL_WARNING
    lines.lines.lines[2].level = log_pb2.LOG_LEVEL_UNSPECIFIED
    ended = asyncio.Event()

    async def watch(request: Any, context: Any) -> None:
        await context.write(the_watch_end())
        ended.set()

    async def tail(request: log_verbs.TailLogsRequest, context: Any) -> None:
        await ended.wait()  # lines may be on their way when their run has ended
        await context.write(lines)
        await context.write(the_tail_end("3"))

    services.scripts["WatchFlowRun"], services.scripts["TailLogs"] = watch, tail
    caplog.set_level(logging.INFO)

    await asyncio.to_thread(wait_for_flow_run, RUN_ID, stream_states=False, stream_logs=True)

    assert [
        ("INFO", "quiet-otter | hello"),
        ("WARNING", "quiet-otter | careful"),
        ("INFO", "quiet-otter | printed"),
    ] == [(record.levelname, record.message) for record in caplog.records if record.name == "penstock.flow"]


async def test_a_log_that_cannot_be_followed_keeps_nobody(
    services: ScriptedServices, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its lines the run is waited for all the same, and the log says so."""
    ended = await asyncio.to_thread(wait_for_flow_run, RUN_ID, stream_logs=True)

    assert FlowRunState.SUCCEEDED is ended.state
    assert "The log of flow run 'quiet-otter' cannot be followed" in caplog.text


async def test_a_log_that_never_ends_keeps_nobody(services: ScriptedServices, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of a killed run stays open; its reader leaves once it has been quiet for a while."""
    monkeypatch.setattr(tasks, "QUIET_SECONDS_MAX", 0.2)
    left = asyncio.Event()

    async def tail(request: log_verbs.TailLogsRequest, context: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    services.scripts["TailLogs"] = tail

    ended = await asyncio.wait_for(asyncio.to_thread(wait_for_flow_run, RUN_ID, stream_logs=True), WAIT_SECONDS)

    assert FlowRunState.SUCCEEDED is ended.state
    await asyncio.wait_for(left.wait(), WAIT_SECONDS)
    await _no_log_is_followed()


async def test_a_wait_that_fails_leaves_no_log_behind(
    services: ScriptedServices, caplog: pytest.LogCaptureFixture
) -> None:
    """When the run is deleted meanwhile, for example: the stream of its lines is ended, and so is who reads it."""
    tailed, left = asyncio.Event(), asyncio.Event()

    async def watch(request: Any, context: Any) -> None:
        await tailed.wait()
        raise errors.FlowRunNotFound(flow_run_id=RUN_ID)

    async def tail(request: log_verbs.TailLogsRequest, context: Any) -> None:
        tailed.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    services.scripts["WatchFlowRun"], services.scripts["TailLogs"] = watch, tail

    with pytest.raises(NotFound):
        await asyncio.wait_for(asyncio.to_thread(wait_for_flow_run, RUN_ID, stream_logs=True), WAIT_SECONDS)

    await asyncio.wait_for(left.wait(), WAIT_SECONDS)
    await _no_log_is_followed()
    assert "cannot be followed" not in caplog.text


async def _no_log_is_followed() -> None:
    for thread in threading.enumerate():
        if thread.name == "penstock-log":
            await asyncio.to_thread(thread.join, WAIT_SECONDS)
            assert not thread.is_alive()


async def test_a_run_waits_for_services_that_restart(services: ScriptedServices, body: Body) -> None:
    """A creation that nobody answered is repeated as it was, so that it makes one child."""
    body.begin(PARENT_ID)
    flow = flow_pb2.Flow(flow_id="flow", flow_group_id="group", name="child")
    flow.create_time.FromJsonString("2026-03-01T10:00:00Z")
    services.scripts["LookUpFlow"] = lambda *_: flow_service_pb2.LookUpFlowResponse(flow=flow)
    asked: list[str] = []

    def create(request: verbs.CreateFlowRunRequest, _: object) -> verbs.CreateFlowRunResponse:
        asked.append(request.request_id)
        if len(asked) < 3:
            raise errors.Overloaded(timedelta(milliseconds=1))
        return verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)

    services.scripts["CreateFlowRun"] = create

    assert RUN_ID == await asyncio.to_thread(create_flow_run, flow_name="child")
    assert (3, 1) == (len(asked), len(set(asked)))


@pytest.mark.slow
async def test_outside_of_runs_nobody_is_waited_for(unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is there who can start a server, and is told at once that there is none."""
    monkeypatch.setenv("PENSTOCK_ADDRESS", f"127.0.0.1:{unused_tcp_port}")

    with pytest.raises(Unavailable, match=f"No Penstock server answers at 127.0.0.1:{unused_tcp_port}"):
        await asyncio.wait_for(asyncio.to_thread(create_flow_run, flow_name="child"), WAIT_SECONDS)


@pytest.mark.parametrize(
    ("inside", "advice"),
    [
        (True, "unless it is started with --lend-token"),
        (False, "Set PENSTOCK_TOKEN to the token that the server was started with"),
    ],
)
async def test_a_missing_token_comes_with_advice(
    inside: bool, advice: str, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body is not told its agent's token; its author is told what to do."""
    async with ScriptedServices(token="secret") as guarded:
        monkeypatch.setenv("PENSTOCK_ADDRESS", guarded.address)
        if inside:
            body.begin(PARENT_ID)

        with pytest.raises(Unauthenticated, match=f"bears no valid token.*{advice}"):
            await asyncio.to_thread(create_flow_run, flow_name="child")


@pytest.mark.slow
async def test_a_parent_that_waits_ends_when_it_is_asked_to(
    services: ScriptedServices, body: Body, tmp_path: Path
) -> None:
    """A wait, for states and lines alike, holds up neither a signal nor the end of the process."""
    watching = asyncio.Event()

    async def for_ever(request: Any, context: Any) -> None:
        watching.set()
        await asyncio.Event().wait()

    services.scripts["WatchFlowRun"] = services.scripts["TailLogs"] = for_ever
    script = tmp_path / "parent.py"
    script.write_text(
        "import signal, sys\n"
        "from penstock.tasks import wait_for_flow_run\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        f"wait_for_flow_run({RUN_ID!r}, stream_logs=True)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), env=_environment(body.environment(PARENT_ID))
    )
    try:
        await asyncio.wait_for(watching.wait(), WAIT_SECONDS)
        process.send_signal(signal.SIGTERM)

        assert 7 == await asyncio.wait_for(process.wait(), WAIT_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
