"""What a flow calls to run other flows: create a child, wait for it, take its result. It works outside of flows too.

    child = create_flow_run(flow_name="hello-world")
    wait_for_flow_run(child)

Inside a run, what is created is its child: cancelled with it unless its policy says otherwise, part of its trace, and
created once. Its key is the parent's id, the call site and how often the call was made there before, so a parent that
is executed again, because it was retried or lost, finds the children that it had, in whichever state they are.

These functions block. In a coroutine, give them to a thread: `await asyncio.to_thread(wait_for_flow_run, child)`.
"""

import asyncio
import contextlib
import hashlib
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from types import FrameType
from typing import Any, Final, TypeVar

from flowrun.v1.flow_run_service_pb2 import CreateFlowRunRequest
from penstock.authoring.run import CurrentFlowRun, NotInFlowRun, current_flow_run, get_logger
from penstock.client import (
    ChildPolicy,
    Client,
    CreatedFlowRun,
    FlowRun,
    FlowRunLive,
    FlowRunState,
    LogLevel,
    LogLine,
    NoLiveFlow,
    Parent,
    PenstockError,
    RunConfig,
    Transition,
    Unauthenticated,
    VersionStale,
    creations,
    flow_runs,
    flows,
    logs,
)
from penstock.client.calls import Call
from penstock.client.errors import invalid
from penstock.client.reconnection import PATIENCE, Reconnection
from penstock.domain.limits import IDEMPOTENCY_KEY_CHARACTERS_MAX, NAME_CHARACTERS_MAX

# How long the log of a run that has ended may say nothing before it is left; a killed run never closes its log.
QUIET_SECONDS_MAX: Final = 5.0

T = TypeVar("T")


class FlowRunFailed(RuntimeError):
    """A run that was waited for did not succeed. `flow_run` is that run in its final state."""

    def __init__(self, flow_run: FlowRun) -> None:
        super().__init__(flow_run)
        self.flow_run = flow_run

    def __str__(self) -> str:
        run = self.flow_run
        why = f": {run.failure}" if run.failure else "."
        return f"Flow run {run.name!r} ({run.flow_run_id}) of flow {run.flow_name!r} ended as {run.state}{why}"


class FlowRunCancelled(FlowRunFailed):
    """A run that was waited for was cancelled."""


def create_flow_run(
    flow_id: str | None = None,
    flow_name: str | None = None,
    *,
    flow_group_id: str | None = None,
    project: str = "",
    project_name: str = "",
    parameters: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    flow_run_name: str = "",
    labels: Sequence[str] | None = None,
    run_config: RunConfig | None = None,
    scheduled_start_time: datetime | timedelta | None = None,
    idempotency_key: str | None = None,
    child_policy: ChildPolicy | None = None,
    log_level: LogLevel | None = None,
    max_retries: int | None = None,
    retry_delay: timedelta | float | None = None,
    retry_failed: bool = False,
) -> str:
    """Create a run and return its id; inside a run, its child.

    The flow is named by its id, its group's id or its name, with the project where several have it; `project_name` is
    another word for `project`. A group or a name means whichever flow is live. Other arguments are those of
    `Client.create_flow_run`. A child is named after its parent and its flow.

    Each call makes a child of its own. Called again at the same place by a later attempt of the parent, it returns that
    child, even if it failed; `retry_failed=True` asks for a new attempt of one that is FAILED or CANCELLED. Between
    threads, coroutines and processes, which come in no order of their own, it is told by what is asked as well: among
    equal wishes the order makes no difference. Only equal wishes of several worker processes need an `idempotency_key`.
    """
    site = _site_of(sys._getframe(1))
    run = _current_run()
    named = {"flow_id": flow_id, "flow_name": flow_name, "flow_group_id": flow_group_id}
    target, name = _target(named, project or project_name)
    call = creations.create_flow_run(
        **target,
        parameters=parameters,
        context=context,
        flow_run_name=flow_run_name or _default_name(run, name),
        labels=labels,
        run_config=run_config,
        scheduled_start_time=scheduled_start_time,
        idempotency_key=idempotency_key,
        child_policy=child_policy,
        log_level=log_level,
        max_retries=max_retries,
        retry_delay=retry_delay,
        parent=None if run is None else Parent(run.id, run.fence),
    )
    assert isinstance(call.request, CreateFlowRunRequest)
    if run is not None and idempotency_key is None:
        call.request.idempotency_key = _places.key(run.id, site, call.request)
    made = _ask(call)
    _tell(made)
    if retry_failed and made.state in (FlowRunState.FAILED, FlowRunState.CANCELLED):
        _restart(made)
    return made.flow_run_id


def wait_for_flow_run(
    flow_run_id: str, *, raise_final_state: bool = False, stream_states: bool = True, stream_logs: bool = False
) -> FlowRun:
    """Wait until a run is final, and return it; with `raise_final_state`, raise FlowRunFailed if it did not succeed.

    Its states, and its log if asked, go to the logger that `penstock.get_logger()` returns. It is told of each as it
    happens, asks nobody meanwhile, and waits as long as it takes, also for services that are away: what ends the wait
    is the run's end, its deletion, or the end of this process.
    """
    run = _ask(flow_runs.get_flow_run(flow_run_id))
    lines = _Lines(run) if stream_logs else None
    ended = _followed(run, stream_states=stream_states)
    if lines is not None:
        lines.wait()
    if raise_final_state:
        _raise_unless_succeeded(ended)
    return ended


def get_flow_run_result(flow_run_id: str) -> Any:
    """Wait for a run, and return what it returned; raises FlowRunFailed if it did not succeed."""
    ended = wait_for_flow_run(flow_run_id, raise_final_state=True, stream_states=False)
    return ended.result


class _Places:
    """Counts the calls of this process by where they were made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()

    def key(self, flow_run_id: str, site: str, request: CreateFlowRunRequest) -> str:
        """The key for the next call: the same in every execution of the parent that comes to the same place."""
        place = site if _in_order() else f"{site}={_digest_of(request)}"
        with self._lock:
            index = self._calls[f"{flow_run_id}/{place}"]
            self._calls[f"{flow_run_id}/{place}"] += 1
        key = f"{flow_run_id}/{place}#{index}"
        if len(key) > IDEMPOTENCY_KEY_CHARACTERS_MAX or not (key.isascii() and key.isprintable()):
            return f"{flow_run_id}/{hashlib.sha256(place.encode(errors='surrogatepass')).hexdigest()}#{index}"
        return key


_places: Final = _Places()
_COMPREHENSIONS: Final = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})


def _site_of(frame: FrameType) -> str:
    """Where a call was made: counted within its function, so that what is edited around that changes nothing."""
    # A comprehension is a function of its own only before Python 3.12, and several look alike.
    while frame.f_code.co_name in _COMPREHENSIONS and frame.f_back is not None:
        frame = frame.f_back
    code = frame.f_code
    line = frame.f_lineno - code.co_firstlineno
    return f"{os.path.basename(code.co_filename)}:{code.co_qualname}+{line}"


def _in_order() -> bool:
    """Whether another execution makes its calls in the order in which this one does."""
    if threading.current_thread() is not threading.main_thread() or multiprocessing.parent_process() is not None:
        return False
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        return False
    return True


def _digest_of(request: CreateFlowRunRequest) -> str:
    """What is asked, but for what honest repeats compute anew."""
    asked = CreateFlowRunRequest()
    asked.CopyFrom(request)
    for field in ("request_id", "name", "scheduled_start_time", "start_delay", "parent"):
        asked.ClearField(field)
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()[:32]


def _target(named: Mapping[str, str | None], project: str) -> tuple[dict[str, Any], str]:
    """What the contract calls the target, and the name of its flow, empty if nobody knows it."""
    given = {kind: value for kind, value in named.items() if value is not None}
    if len(given) != 1:
        raise invalid("target", f"exactly one of {', '.join(named)} must be given.")
    if project and "flow_name" not in given:
        raise invalid("project", "goes with flow_name.")
    ((kind, value),) = given.items()
    try:
        flow = _ask(
            flows.look_up_flow(name=value, project=project) if kind == "flow_name" else flows.look_up_flow(id=value)
        )
    except NoLiveFlow as error:
        # A child that was made before its flow was archived is found all the same; any other is refused below.
        return {"flow_group_id": error.metadata["flow_group_id"]}, ""
    if kind == "flow_group_id" or (kind == "flow_id" and value.lower() == flow.flow_id):
        return {kind: value}, flow.name
    # By its group, so that the key holds when another version is registered between two attempts.
    return {"flow_group_id": flow.flow_group_id}, flow.name


def _default_name(run: CurrentFlowRun | None, flow_name: str) -> str:
    name = f"{run.name}-{flow_name}" if run is not None and flow_name else ""
    return name if len(name) <= NAME_CHARACTERS_MAX else ""


def _tell(made: CreatedFlowRun) -> None:
    if made.created:
        get_logger().info("Created flow run %r of flow %r: %s", made.name, made.flow_name, made.flow_run_id)
    elif made.differing_fields:
        differing = ", ".join(made.differing_fields)
        get_logger().warning(
            "Found flow run %r, which was created with other %s than are asked for now: %s",
            made.name,
            differing,
            made.flow_run_id,
        )
    else:
        get_logger().info("Found flow run %r, which was created before: %s", made.name, made.flow_run_id)


def _restart(made: CreatedFlowRun) -> None:
    # Whoever was faster wanted the same.
    with contextlib.suppress(VersionStale, FlowRunLive):
        _ask(
            flow_runs.restart_flow_run(made.flow_run_id, made.version, reason="It was created again with retry_failed.")
        )
        get_logger().info("Restarted flow run %r, which had been %s.", made.name, made.state)


def _followed(run: FlowRun, *, stream_states: bool) -> FlowRun:
    """Follow a run to its end, however long its server is away; every break that lasts is told of."""
    seen = 0
    while True:
        try:
            with _advised():
                for news in _client().follow(flow_runs.follow_flow_run(run.flow_run_id, seen)):
                    if isinstance(news, FlowRun):
                        return news
                    seen = news.version
                    if stream_states:
                        _show_state(run, news)
        except PenstockError as error:
            if not error.passing:
                raise
            get_logger().warning("There is no news of flow run %r; waiting on. %s", run.name, error)


def _show_state(run: FlowRun, step: Transition) -> None:
    why = f": {step.message}" if step.message else ""
    get_logger().info("Flow run %r entered state %s%s", run.name, step.state, why)


class _Lines:
    """The log of a run, on its way to the logger. A thread brings it, because the states come on the caller's."""

    def __init__(self, run: FlowRun) -> None:
        self._run = run
        self._shown = 0
        self._left = False
        self._thread = threading.Thread(target=self._show_all, name="penstock-log", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the end of the log, as long as lines keep coming."""
        while self._thread.is_alive():
            before = self._shown
            self._thread.join(QUIET_SECONDS_MAX)
            if before == self._shown:
                self._left = True
                return

    def _show_all(self) -> None:
        try:
            for line in _client().follow(logs.follow_logs(self._run.flow_run_id)):
                if self._left:
                    return
                self._show(line)
                self._shown += 1
        except PenstockError as error:
            # The states matter more than the lines: the wait goes on without these.
            get_logger().warning("The log of flow run %r cannot be followed: %s", self._run.name, error)

    def _show(self, line: LogLine) -> None:
        # Output has no level of its own.
        level = logging.INFO if line.level is LogLevel.UNKNOWN else logging.getLevelNamesMapping()[line.level]
        get_logger().log(level, "%s | %s", self._run.name, line)


def _raise_unless_succeeded(run: FlowRun) -> None:
    if run.state is FlowRunState.CANCELLED:
        raise FlowRunCancelled(run)
    if run.state is not FlowRunState.SUCCEEDED:
        raise FlowRunFailed(run)


def _current_run() -> CurrentFlowRun | None:
    try:
        return current_flow_run()
    except NotInFlowRun:
        return None


def _ask(call: Call[T]) -> T:
    """Make a call. Inside a run services that restart are waited for; elsewhere somebody is there who can decide."""
    reconnection = Reconnection(PATIENCE if _current_run() else timedelta(0))
    while True:
        try:
            with _advised():
                return _client().ask(call)
        except PenstockError as error:
            time.sleep(reconnection.pause_seconds(error))


@contextlib.contextmanager
def _advised() -> Iterator[None]:
    """Say what can be done about a token that is missing."""
    try:
        yield
    except Unauthenticated as error:
        advice = (
            "Set PENSTOCK_TOKEN to the token that the server was started with."
            if _current_run() is None
            else "An agent keeps its token to itself unless it is started with --lend-token."
        )
        raise replace(error, message=f"{error.message} {advice}") from None


def _client() -> Client:
    """The client of this process, told by the environment where the services are."""
    return _client_of(os.getpid())


@cache
def _client_of(process: int) -> Client:
    # A connection does not survive a fork.
    return Client()
