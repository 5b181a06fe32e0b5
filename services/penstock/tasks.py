"""What a flow calls to run other flows: create a child, wait for it, take its result. It works outside of flows too.

    child = create_flow_run(flow_name="hello-world")
    wait_for_flow_run(child)

Inside a run, what is created is its child: cancelled with it unless its policy says otherwise, part of its trace, and
created once. Its key is the parent's id, the call site and how often the call was made there before, so a parent that
is executed again, because it was retried or lost, finds the children that it had, in whichever state they are. Only the
main thread of a Python flow comes to its calls in the same order each time; anywhere else what is asked joins the key.

These functions block. In a coroutine, give them to a thread: `await asyncio.to_thread(wait_for_flow_run, child)`.
"""

import asyncio
import contextlib
import hashlib
import heapq
import logging
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from types import FrameType
from typing import Any, Final, TypeVar

from flowrun.v1.flow_run_service_pb2 import CreateFlowRunRequest
from penstock.authoring.run import CurrentFlowRun, NotInFlowRun, current_flow_run, get_logger, is_body
from penstock.client import (
    ChildPolicy,
    Client,
    CreatedFlowRun,
    FlowRun,
    FlowRunDeleted,
    FlowRunLive,
    FlowRunState,
    LogLevel,
    LogLine,
    NoLiveFlow,
    Parent,
    PenstockError,
    RunConfig,
    Transition,
    TransitionCause,
    Unauthenticated,
    VersionStale,
    creations,
    flow_runs,
    flows,
    logs,
)
from penstock.client.calls import Call, Ending
from penstock.client.errors import invalid
from penstock.client.logs import QUIET_SECONDS_MAX
from penstock.client.reconnection import PATIENCE, Reconnection
from penstock.domain import json_text
from penstock.domain.limits import IDEMPOTENCY_KEY_CHARACTERS_MAX, NAME_CHARACTERS_MAX

T = TypeVar("T")


class FlowRunFailed(RuntimeError):
    """A run that was waited for did not succeed. `flow_run` is that run in its final state."""

    def __init__(self, flow_run: FlowRun) -> None:
        super().__init__(flow_run)
        self.flow_run = flow_run

    def __str__(self) -> str:
        run = self.flow_run
        # A run that was cancelled keeps the failure of an attempt before, which is not why it ended.
        why = f": {run.failure}" if run.failure and run.state is FlowRunState.FAILED else "."
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
    `Client.create_flow_run`. A child is named after its parent and its flow, and numbered where it has siblings.

    Each call makes a child of its own. Called again at the same place by a later attempt of the parent, it returns that
    child, even if it failed; `retry_failed=True` asks for a new attempt of one that is FAILED or CANCELLED, as soon as
    it is. A child that was cancelled only because its parent was is attempted again with its parent. A call that fails
    may have made its child all the same: the next call at that place that asks the same stands for it, and one that
    asks anything else is for another child.

    The calls in the main thread of a Python flow are told apart by their order. In threads, coroutines and commands,
    and in processes that a flow starts or forks, there is no order to rely on: there what is asked tells them apart,
    but for the name and the start time, and only equal wishes are counted. Each process counts for itself, so that
    equal wishes at one place in several processes mean the same child, unless each has its own `idempotency_key`.
    """
    site = _site_of(sys._getframe(1))
    run = _current_run()
    meant = _meant(
        {"flow_id": flow_id, "flow_name": flow_name, "flow_group_id": flow_group_id}, project or project_name
    )
    call = creations.create_flow_run(
        flow_group_id="",  # looked up below, because a call counts even if nobody answers that question
        parameters=parameters,
        context=context,
        flow_run_name=flow_run_name,
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
    request = call.request
    assert isinstance(request, CreateFlowRunRequest)
    with contextlib.ExitStack() as counted:
        number = 0
        if run is not None and idempotency_key is None:
            key = counted.enter_context(_places.key(run.id, site, _wish_of(meant, request)))
            request.idempotency_key, number = key, int(key.rpartition("#")[2])
        flow = _set_target(request, meant)
        request.name = flow_run_name or _default_name(run, flow, number)
        made = _ask(call)
    _tell(made)
    if retry_failed:
        _restart_if_failed(made, "It was created again with retry_failed.")
    elif run is not None and _was_taken_along(made):
        _restart_if_failed(made, "Its parent, with which it was cancelled, is attempted again.")
    return made.flow_run_id


def wait_for_flow_run(
    flow_run_id: str, *, raise_final_state: bool = False, stream_states: bool = True, stream_logs: bool = False
) -> FlowRun:
    """Wait until a run is final, and return it; with `raise_final_state`, raise FlowRunFailed if it did not succeed.

    Its states, and its log if asked, go to the logger that `penstock.get_logger()` returns. It is told of each as it
    happens, asks nobody meanwhile, and waits as long as it takes, also for services that are away: what ends the wait
    is the run's end, its deletion, or the end of this process.
    """
    run = _found(flow_run_id)
    with _log_shown(run) if stream_logs else contextlib.nullcontext():
        ended = _followed(run, stream_states=stream_states)
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
        self.begin()

    def begin(self) -> None:
        """Begin to count. A fork counts for itself too, and may have been made while a thread held the lock."""
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._failed: defaultdict[tuple[str, str], list[int]] = defaultdict(list)

    @contextlib.contextmanager
    def key(self, flow_run_id: str, site: str, wish: str) -> Iterator[str]:
        """The key for the next call: the same in every execution of the parent that comes to the same place.

        A call that fails leaves its number to the next one with its wish, which would else make a second child where an
        answer was lost. To any other it is not left: that would find this child in the next execution.
        """
        place = site if _in_order() else f"{site}={wish}"
        number = self._taken(f"{flow_run_id}/{place}", wish)
        try:
            yield _key_of(flow_run_id, place, number)
        except FlowRunDeleted:
            raise  # There was a child of this number, which is no failure of the call.
        except BaseException:
            with self._lock:
                heapq.heappush(self._failed[f"{flow_run_id}/{place}", wish], number)
            raise

    def _taken(self, place: str, wish: str) -> int:
        with self._lock:
            if failed := self._failed.get((place, wish)):
                return heapq.heappop(failed)
            self._calls[place] += 1
            return self._calls[place] - 1


def _key_of(flow_run_id: str, place: str, number: int) -> str:
    key = f"{flow_run_id}/{place}#{number}"
    if len(key) > IDEMPOTENCY_KEY_CHARACTERS_MAX or not (key.isascii() and key.isprintable()):
        return f"{flow_run_id}/{hashlib.sha256(place.encode(errors='surrogatepass')).hexdigest()}#{number}"
    return key


_places: Final = _Places()
os.register_at_fork(after_in_child=lambda: _places.begin())
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
    # What the body forks or starts is told which run it is in, and counts from the beginning.
    if not is_body() or threading.current_thread() is not threading.main_thread():
        return False
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Meant:
    """A flow as its caller named it."""

    kind: str
    value: str
    project: str


def _meant(named: Mapping[str, str | None], project: str) -> _Meant:
    given = {kind: value for kind, value in named.items() if value is not None}
    if len(given) != 1:
        raise invalid("target", f"exactly one of {', '.join(named)} must be given.")
    if project and "flow_name" not in given:
        raise invalid("project", "goes with flow_name.")
    ((kind, value),) = given.items()
    return _Meant(kind, value, project)


def _wish_of(meant: _Meant, request: CreateFlowRunRequest) -> str:
    """What is asked, in one form however it was written, but for what honest repeats compute anew."""
    asked = CreateFlowRunRequest()
    asked.CopyFrom(request)
    for field in ("flow_group_id", "request_id", "name", "scheduled_start_time", "start_delay", "parent"):
        asked.ClearField(field)
    asked.parameters_json = _in_one_form(asked.parameters_json)
    asked.context_json = _in_one_form(asked.context_json)
    if asked.HasField("labels"):
        asked.labels.labels[:] = sorted(set(asked.labels.labels))
    target = json_text.canonical([meant.kind, meant.value, meant.project]).encode(errors="surrogatepass")
    return hashlib.sha256(target + asked.SerializeToString(deterministic=True)).hexdigest()[:32]


def _in_one_form(text: str) -> str:
    # Objects may come in any order, for example in that of a set. What is no JSON at all is refused by the server.
    with contextlib.suppress(json_text.NotJson):
        return json_text.canonical(json_text.parse_object(text))
    return text


def _set_target(request: CreateFlowRunRequest, meant: _Meant) -> str:
    """Say what is meant as the contract does; return the name of that flow, empty if nobody knows it."""
    try:
        flow = _ask(
            flows.look_up_flow(name=meant.value, project=meant.project)
            if meant.kind == "flow_name"
            else flows.look_up_flow(id=meant.value)
        )
    except NoLiveFlow as error:
        # A child that was made before its flow was archived is found all the same; any other is refused below.
        request.flow_group_id = error.metadata["flow_group_id"]
        return ""
    if meant.kind == "flow_id" and meant.value.lower() == flow.flow_id:
        request.flow_id = meant.value
    elif meant.kind == "flow_group_id":
        request.flow_group_id = meant.value
    else:
        # By its group, so that the key holds when another version is registered between two attempts.
        request.flow_group_id = flow.flow_group_id
    return flow.name


def _default_name(run: CurrentFlowRun | None, flow_name: str, number: int) -> str:
    sibling = f"-{number + 1}" if number else ""
    name = f"{run.name}-{flow_name}{sibling}" if run is not None and flow_name else ""
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


def _was_taken_along(found: CreatedFlowRun) -> bool:
    """Whether a child was cancelled because its parent was, and for nothing else."""
    if found.state not in (FlowRunState.CANCELLED, FlowRunState.CANCELLING):
        return False
    page = _ask(flow_runs.list_transitions(found.flow_run_id, page_size=1_000).page(""))
    stops = [step.cause for step in page.items if step.attempt == found.attempt and step.state in _STOPS]
    return stops[:1] == [TransitionCause.PARENT_CANCELLED]


_STOPS: Final = (FlowRunState.CANCELLING, FlowRunState.CANCELLED)


def _restart_if_failed(found: FlowRun, reason: str) -> None:
    # A run that is being cancelled has an end before it, which is known once it has come.
    run = _followed(found, stream_states=False) if found.state is FlowRunState.CANCELLING else found
    if run.state not in (FlowRunState.FAILED, FlowRunState.CANCELLED):
        return
    # Whoever was faster wanted the same.
    with contextlib.suppress(VersionStale, FlowRunLive):
        _ask(flow_runs.restart_flow_run(run.flow_run_id, run.version, reason=reason))
        get_logger().info("Restarted flow run %r, which had been %s.", run.name, run.state)


def _found(flow_run_id: str) -> FlowRun:
    """The run, once its server answers; who waits without one is told so at once, and then now and again."""
    patience = timedelta(0)
    while True:
        try:
            return _ask(flow_runs.get_flow_run(flow_run_id), patience)
        except PenstockError as error:
            _tell_of_silence(flow_run_id, error)
        patience = PATIENCE


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
            _tell_of_silence(run.name, error)


def _tell_of_silence(flow_run: str, error: PenstockError) -> None:
    """Say why there is no news; raises the error if none will come."""
    if not error.passing:
        raise error
    get_logger().warning("There is no news of flow run %r; waiting on. %s", flow_run, error)


def _show_state(run: FlowRun, step: Transition) -> None:
    why = f": {step.message}" if step.message else ""
    get_logger().info("Flow run %r entered state %s%s", run.name, step.state, why)


@contextlib.contextmanager
def _log_shown(run: FlowRun) -> Iterator[None]:
    """Show the log of a run meanwhile, and what is left of it afterwards, unless nobody waits for it any more."""
    lines = _Lines(run)
    try:
        yield
        lines.wait()
    finally:
        lines.end()


class _Lines:
    """The log of a run, on its way to the logger. A thread brings it, because the states come on the caller's."""

    def __init__(self, run: FlowRun) -> None:
        self._run = run
        self._shown = 0
        self._ending = Ending()
        self._thread = threading.Thread(target=self._show_all, name="penstock-log", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the end of the log, as long as lines keep coming."""
        while self._thread.is_alive():
            before = self._shown
            self._thread.join(QUIET_SECONDS_MAX)
            if before == self._shown:
                return

    def end(self) -> None:
        """Show no more of it. The thread ends by itself."""
        self._ending.end()

    def _show_all(self) -> None:
        try:
            for line in _client().follow(logs.follow_logs(self._run.flow_run_id), self._ending):
                if self._ending.ended:
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


def _ask(call: Call[T], patience: timedelta | None = None) -> T:
    """Make a call. Inside a run services that restart are waited for; elsewhere somebody is there who can decide."""
    if patience is None:
        patience = PATIENCE if _current_run() else timedelta(0)
    reconnection = Reconnection(patience)
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
