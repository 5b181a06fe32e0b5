"""Leases against a model: whatever two agents, the keeper and time do, in whatever order.

The model knows of each run its state, its phase, its fence and a few counters; it predicts every answer. After each
step the database must agree with it, and a call with a stale lease must have changed no row at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pendulum import DateTime

from penstock.domain.agent import Releasing
from penstock.domain.errors import ExecutionRefused, LeaseLost, MoveRefused, Refusal
from penstock.domain.flow import PolicyAsked
from penstock.domain.flow_run import (
    Created,
    Failure,
    Finishing,
    FlowRun,
    FlowTarget,
    Outcome,
    Starting,
    Stopped,
    Succeeded,
)
from penstock.domain.ids import ExecutionId, FlowGroupId, FlowId, FlowRunId, LaneId, ProjectId
from penstock.domain.lanes import AGENTLESS, Lane, may_take
from penstock.domain.lease import Lease, LeaseOutcome, Phase
from penstock.domain.limits import (
    AGENTLESS_WAIT_MAX,
    DECLINED_DELAY,
    HELD_LEASE,
    OFFER_LEASE,
    PRIORITY_WORTH,
    RELEASES_MAX,
)
from penstock.domain.state import FINAL, State
from penstock.flow_run import flow_operations
from penstock.flow_run import operations as flow_run_operations
from penstock.flow_run.creation import create_flow_runs
from penstock.flow_run.flow_operations import FreshIds
from penstock.flow_run.operations import Started
from penstock.keeper.deserted import fail_deserted
from penstock.keeper.expired_leases import expire_leases
from penstock.queue import operations as queue_operations
from penstock.queue.operations import Accepting
from penstock.storage import schema
from penstock.storage.database import Database, Transaction, open_engine
from tests.queue.scenes import AGENT, HOLDER, OTHER_AGENT, SECOND, TENANT, asking_to_stop
from tests.support.builders import a_creation, a_registration, an_id
from tests.support.databases import Databases
from tests.support.fake_clock import FakeClock

HOLDING: Final = (Phase.HELD, Phase.STOPPING)
STATES: Final = {
    Phase.WAITING: {State.SCHEDULED},
    Phase.OFFERED: {State.SCHEDULED},
    Phase.HELD: {State.SUBMITTED, State.RUNNING},
    Phase.STOPPING: {State.CANCELLING},
    None: FINAL,
}
OUTCOMES: Final[tuple[Outcome, ...]] = (Succeeded("1"), Failure(message="no"), Stopped("stopped"))
# How many leases ago: mostly few, so that long stories are told of one run.
RECENT: Final = st.one_of(st.integers(0, 1), st.integers(0, 9))
# Two executions that may claim any lease, and none.
EXECUTIONS: Final = (ExecutionId(an_id()), ExecutionId(an_id()), None)


@dataclass
class Run:
    """What the model knows of a run."""

    id: FlowRunId
    priority: int
    retries_left: int
    losses_left: int
    due: DateTime
    agentless: bool = False
    state: State = State.SCHEDULED
    phase: Phase | None = Phase.WAITING
    fence: int = 0
    version: int = 1
    attempt: int = 1
    releases: int = 0
    holder: Any = None
    expiry: DateTime | None = None
    execution_id: ExecutionId | None = None

    @property
    def rank(self) -> tuple[DateTime, FlowRunId]:
        return self.due - self.priority * PRIORITY_WORTH, self.id

    def move(self, state: State) -> None:
        self.state, self.version = state, self.version + 1

    def end(self, state: State) -> None:
        self.move(state)
        self.phase = self.expiry = self.holder = None

    def wait(self, due: DateTime) -> None:
        self.phase, self.fence, self.due = Phase.WAITING, self.fence + 1, due
        self.expiry = self.holder = self.execution_id = None

    def undeployed(self, now: DateTime) -> None:
        self.releases += 1
        if self.releases > RELEASES_MAX:
            self.end(State.FAILED)
        else:
            self.move(State.SCHEDULED)
            self.wait(now + timedelta(seconds=min(2 ** (self.releases - 1), 60)))


def some_lease(machine: "Leases") -> bool:
    return bool(machine.granted)


class Leases(RuleBasedStateMachine):
    """Calls the operations on a SQLite database and the model alike."""

    def __init__(self, databases: Databases) -> None:
        super().__init__()
        self.databases = databases
        self.clock = FakeClock()
        self.url = databases.fresh("sqlite")
        self.engine = open_engine(self.url, connections=1)
        self.database = Database(self.engine, self.clock, threads=1)
        self.runs: dict[FlowRunId, Run] = {}
        self.granted: list[Lease] = []
        # By whose word each execution ended, which decides what a repeat of that word is answered.
        self.ended: dict[Lease, tuple[str, ExecutionId | None]] = {}

    def teardown(self) -> None:
        self.database.close()
        self.databases.drop(self.url)

    def do(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.database.run_here(work, TENANT, *args, **kwargs)

    def rows(self) -> list[list[tuple[Any, ...]]]:
        def read(tx: Transaction) -> list[list[tuple[Any, ...]]]:
            return [
                sorted(map(tuple, tx.conn.execute(each.select())), key=repr) for each in schema.metadata.tables.values()
            ]

        return self.database.read_here(read)

    def unchanged(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The answer of a call that must change nothing."""
        before = self.rows()
        answer = self.do(work, *args, **kwargs)
        assert before == self.rows(), "a call that is refused changed something"
        return answer

    def lease(self, which: int) -> Lease:
        """The last lease that was granted, or one before it: some are current, some long over."""
        return self.granted[-1 - which % len(self.granted)]

    def held_by(self, lease: Lease, *phases: Phase) -> Run | None:
        """The run, if that is its present lease in one of these phases."""
        run = self.runs[lease.flow_run_id]
        return run if run.fence == lease.fence and run.phase in phases else None

    def over(self, lease: Lease) -> LeaseOutcome:
        return LeaseOutcome.ENDED if self.runs[lease.flow_run_id].phase is None else LeaseOutcome.LOST

    @initialize()
    def register(self) -> None:
        fresh = FreshIds(ProjectId(an_id()), FlowGroupId(an_id()), FlowId(an_id()))
        self.flow, _ = self.do(flow_operations.register_flow, fresh, a_registration())

    @rule(
        priority=st.integers(0, 3),
        retries=st.integers(0, 2),
        losses=st.integers(0, 1),
        later=st.sampled_from((0, 5)),
        agentless=st.booleans(),
    )
    def create(self, priority: int, retries: int, losses: int, later: int, agentless: bool = False) -> None:
        policy = PolicyAsked(priority=priority, max_retries=retries, max_lost_restarts=losses)
        due = self.clock.now() + later * SECOND
        labels = (AGENTLESS,) if agentless else ()
        creation = a_creation(target=FlowTarget(self.flow.id), policy=policy, scheduled_start_time=due, labels=labels)
        (created,) = self.do(create_flow_runs, [creation])
        assert isinstance(created, Created)
        self.runs[creation.flow_run_id] = Run(creation.flow_run_id, priority, retries, losses, due, agentless)

    @rule(room=st.integers(1, 3))
    def take(self, room: int) -> None:
        now = self.clock.now()
        for run in self.runs.values():
            if run.phase is Phase.OFFERED and run.expiry is not None and run.expiry <= now:
                run.wait(run.due)
        due = sorted(
            (run for run in self.runs.values() if run.phase is Phase.WAITING and run.due <= now and not run.agentless),
            key=lambda run: run.rank,
        )

        def rooms_of(lanes: Sequence[Lane]) -> dict[LaneId, int]:
            return {each.id: room for each in lanes if may_take(frozenset(), each.key.labels)}

        taken = self.do(queue_operations.take, rooms_of, holder=HOLDER, ttl=OFFER_LEASE)

        assert [run.id for run in due[:room]] == [grant.run.id for grant in taken.grants], "not the best, or not all"
        for run, grant in zip(due, taken.grants, strict=False):
            run.phase, run.fence, run.expiry, run.holder = Phase.OFFERED, run.fence + 1, now + OFFER_LEASE, HOLDER
            assert Lease(run.id, run.fence) == grant.held.lease
            assert grant.held.lease not in self.granted, "a fence came back"
            self.granted.append(grant.held.lease)

    @precondition(lambda machine: bool(machine.runs))
    @rule(which=RECENT)
    def take_by_name(self, which: int) -> None:
        now = self.clock.now()
        run = list(self.runs.values())[-1 - which % len(self.runs)]
        ran_out = run.phase is Phase.OFFERED and run.expiry is not None and run.expiry <= now
        work = queue_operations.offer_flow_run
        if not (run.due <= now and (run.phase is Phase.WAITING or ran_out)):
            assert self.unchanged(work, run.id, holder=HOLDER, ttl=OFFER_LEASE) is None
            return
        grant = self.do(work, run.id, holder=HOLDER, ttl=OFFER_LEASE)
        run.phase, run.fence, run.expiry, run.holder = Phase.OFFERED, run.fence + 1, now + OFFER_LEASE, HOLDER
        assert Lease(run.id, run.fence) == grant.held.lease
        assert grant.held.lease not in self.granted, "a fence came back"
        self.granted.append(grant.held.lease)

    @precondition(some_lease)
    @rule(which=RECENT, agent=st.sampled_from((AGENT, OTHER_AGENT)))
    def accept(self, which: int, agent: Any) -> None:
        lease = self.lease(which)
        work, items = queue_operations.accept_flow_runs, [Accepting(lease, agent)]
        if run := self.held_by(lease, Phase.OFFERED):
            (result,) = self.do(work, items, ttl=HELD_LEASE)
            assert LeaseOutcome.HELD is result.outcome
            run.move(State.SUBMITTED)
            run.phase, run.holder, run.expiry = Phase.HELD, agent, self.clock.now() + HELD_LEASE
            return
        (result,) = self.unchanged(work, items, ttl=HELD_LEASE)
        run = self.held_by(lease, *HOLDING)
        expected = self.over(lease) if run is None else LeaseOutcome.LOST
        if run is not None and run.holder == agent:
            expected = LeaseOutcome.HELD if run.phase is Phase.HELD else LeaseOutcome.STOPPING
        assert expected is result.outcome

    @precondition(some_lease)
    @rule(which=RECENT, execution_id=st.sampled_from(EXECUTIONS[:2]))
    def start(self, which: int, execution_id: ExecutionId) -> None:
        lease = self.lease(which)
        work, items = flow_run_operations.start_flow_runs, [Starting(lease.flow_run_id, lease.fence, execution_id)]
        run = self.held_by(lease, *HOLDING)
        if run is None:
            (refused,) = self.unchanged(work, items, ttl=HELD_LEASE)
            assert isinstance(refused, LeaseLost)
            return
        if run.execution_id not in (None, execution_id):
            (refused,) = self.unchanged(work, items, ttl=HELD_LEASE)
            assert isinstance(refused, ExecutionRefused)
            return
        (started,) = self.do(work, items, ttl=HELD_LEASE)
        assert isinstance(started, Started)
        if run.state is State.SUBMITTED:
            run.move(State.RUNNING)
            run.execution_id = execution_id
        run.expiry = self.clock.now() + HELD_LEASE
        assert run.state is started.run.state

    @rule(retries=st.integers(0, 2), losses=st.integers(0, 1))
    def deploy(self, retries: int, losses: int) -> None:
        """A run that goes straight to work, so that most stories have one."""
        self.create(priority=0, retries=retries, losses=losses, later=0)
        self.take(room=3)
        if self.granted:
            self.accept(which=0, agent=AGENT)
            self.start(which=0, execution_id=EXECUTIONS[0])

    @precondition(some_lease)
    @rule(which=RECENT, execution_id=st.sampled_from(EXECUTIONS), outcome=st.sampled_from(OUTCOMES))
    def finish(self, which: int, execution_id: ExecutionId | None, outcome: Outcome) -> None:
        lease = self.lease(which)
        work = flow_run_operations.finish_flow_runs
        items = [Finishing(lease.flow_run_id, lease.fence, execution_id, outcome)]
        run = self.held_by(lease, *HOLDING)
        if run is None:
            (answer,) = self.unchanged(work, items)
            first = self.ended.get(lease) == ("finish", execution_id)
            assert isinstance(answer, FlowRun if first else LeaseLost)
            return
        refusal = self._refusal(run, execution_id, outcome)
        if refusal is not None:
            (answer,) = self.unchanged(work, items)
            assert isinstance(answer, refusal)
            return
        (answer,) = self.do(work, items)
        self.ended[lease] = "finish", execution_id
        if isinstance(outcome, Failure) and run.retries_left and run.phase is Phase.HELD:
            run.retries_left, run.attempt, run.releases = run.retries_left - 1, run.attempt + 1, 0
            run.move(State.SCHEDULED)
            run.wait(self.clock.now())
        else:
            ends = {Succeeded: State.SUCCEEDED, Failure: State.FAILED, Stopped: State.CANCELLED}
            run.end(ends[type(outcome)])
        assert isinstance(answer, FlowRun)

    def _refusal(self, run: Run, execution_id: ExecutionId | None, outcome: Outcome) -> type[Refusal] | None:
        if run.execution_id not in (None, execution_id):
            return ExecutionRefused
        allowed = {State.SUBMITTED: (Failure,), State.RUNNING: (Succeeded, Failure)}
        return None if isinstance(outcome, allowed.get(run.state, (Succeeded, Failure, Stopped))) else MoveRefused

    @precondition(some_lease)
    @rule(which=RECENT)
    def renew(self, which: int) -> None:
        lease = self.lease(which)
        work = queue_operations.renew_leases
        if run := self.held_by(lease, *HOLDING):
            (result,) = self.do(work, [lease], ttl=HELD_LEASE)
            run.expiry = self.clock.now() + HELD_LEASE
            assert (LeaseOutcome.HELD if run.phase is Phase.HELD else LeaseOutcome.STOPPING) is result.outcome
        else:
            (result,) = self.unchanged(work, [lease], ttl=HELD_LEASE)
            assert self.over(lease) is result.outcome

    @precondition(some_lease)
    @rule(which=RECENT)
    def release(self, which: int) -> None:
        lease = self.lease(which)
        work, items = queue_operations.release_flow_runs, [Releasing(lease)]
        run = self.held_by(lease, Phase.OFFERED, *HOLDING)
        if run is None or run.execution_id is not None:
            (result,) = self.unchanged(work, items)
            again = self.ended.get(lease, ("", None))[0] == "release"
            expected = LeaseOutcome.STARTED if run else LeaseOutcome.RELEASED if again else self.over(lease)
            assert expected is result.outcome
            return
        (result,) = self.do(work, items)
        assert LeaseOutcome.RELEASED is result.outcome
        if run.phase is Phase.OFFERED:
            run.wait(self.clock.now() + DECLINED_DELAY)
            return
        self.ended[lease] = "release", None
        if run.phase is Phase.STOPPING:
            run.end(State.CANCELLED)
        else:
            run.undeployed(self.clock.now())

    @precondition(some_lease)
    @rule(which=RECENT)
    def give_back(self, which: int) -> None:
        lease = self.lease(which)
        if run := self.held_by(lease, Phase.OFFERED):
            assert self.do(queue_operations.give_back, [lease], holder=HOLDER) == 1
            run.wait(run.due)
        else:
            assert self.unchanged(queue_operations.give_back, [lease], holder=HOLDER) == 0

    @precondition(some_lease)
    @rule(which=RECENT)
    def cancel(self, which: int) -> None:
        lease = self.lease(which)
        if run := self.held_by(lease, Phase.HELD):
            self.database.run_here(asking_to_stop, lease)
            run.move(State.CANCELLING)
            run.phase = Phase.STOPPING

    @rule()
    def expire(self) -> None:
        now = self.clock.now()
        silent = [run for run in self.runs.values() if run.phase in HOLDING and run.expiry and run.expiry <= now]
        assert len(silent) == self.do(expire_leases, ttl=HELD_LEASE)
        for run in silent:
            if run.phase is Phase.STOPPING:
                run.end(State.CANCELLED)
            elif run.execution_id is None:
                run.undeployed(now)
            elif run.losses_left == 0:
                run.end(State.FAILED)
            else:
                run.losses_left -= 1
                run.move(State.SCHEDULED)
                run.wait(now)

    @rule(patience=st.sampled_from((timedelta(0), AGENTLESS_WAIT_MAX)))
    def desert(self, patience: timedelta) -> None:
        self.clock.advance(patience)
        by = self.clock.now() - AGENTLESS_WAIT_MAX
        waiting = [run for run in self.runs.values() if run.agentless and run.phase is Phase.WAITING and run.due <= by]
        assert len(waiting) == self.do(fail_deserted)
        for run in waiting:
            run.end(State.FAILED)

    @rule(seconds=st.sampled_from((1, 5, 30, 60)))
    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds * SECOND)

    @invariant()
    def the_database_agrees(self) -> None:
        """Run, entry and history of each run are as the model has them; the phase fits the state."""

        def read(tx: Transaction) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
            tables = (schema.flow_runs, schema.queue_entries, schema.transitions, schema.executions)
            rows = [list(tx.conn.execute(each.select())) for each in tables]
            return rows[0], rows[1], rows[2], rows[3]

        runs, entries, steps, executions = self.database.read_here(read)
        entry_of = {each.flow_run_id: each for each in entries}
        assert len(self.runs) == len(runs)
        for row in runs:
            model, entry = self.runs[row.flow_run_id], entry_of.get(row.flow_run_id)
            assert (model.state, model.version, model.attempt) == (row.state, row.version, row.attempt)
            assert (entry.phase if entry else None) is model.phase
            assert row.state in STATES[model.phase]
            assert model.fence == (entry.fence if entry else row.fence)
            if entry:
                assert (model.due, model.expiry, model.holder) == (
                    entry.due_time,
                    entry.lease_expire_time,
                    entry.holder,
                )
        for run in self.runs.values():
            own = sorted(each.version for each in steps if each.flow_run_id == run.id)
            assert list(range(1, run.version + 1)) == own, "the history has a gap"
            live = [each.fence for each in executions if each.flow_run_id == run.id and each.end_time is None]
            assert live == ([run.fence] if run.phase in HOLDING else []), "two leases live, or none where one should"


def test_leases_behave_as_the_model(databases: Databases) -> None:
    """No order of calls, expiries and repeats breaks a promise of the queue."""
    bounded = settings(
        max_examples=40,
        stateful_step_count=40,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(lambda: Leases(databases), settings=bounded)  # type: ignore[arg-type]
