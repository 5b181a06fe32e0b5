"""Tests of `penstock.domain.lease`."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from penstock.domain.errors import ExecutionRefused, MoveRefused
from penstock.domain.flow import ChildPolicy, Policy
from penstock.domain.flow_run import Failure, Finishing, Outcome, Stopped, Succeeded
from penstock.domain.ids import ExecutionId, FlowRunId, ProcessId
from penstock.domain.lease import (
    Change,
    EndedBy,
    Execution,
    Phase,
    accepted,
    cancelled,
    declined,
    deserted,
    expired,
    finished,
    first_entry,
    may_be_offered,
    offered,
    rank_time,
    release_delay,
    released,
    renew,
    started,
    waits,
)
from penstock.domain.limits import PRIORITY_MAX, PRIORITY_WORTH, RELEASE_DELAY_MAX, RELEASES_MAX
from penstock.domain.state import Cause, State
from tests.domain.builders import AGENT_ID, EXECUTION_ID, LANE_ID, MINUTE, RUN_ID, a_flow_run, an_entry, an_execution
from tests.support.fake_clock import NOON

LATER = NOON + timedelta(seconds=10)
SECOND = timedelta(seconds=1)
OTHER_EXECUTION = ExecutionId(UUID(int=9))
FAILURE = Failure(type="ValueError", message="no river")


def a_finish(outcome: Outcome, execution_id: ExecutionId | None = EXECUTION_ID) -> Finishing:
    return Finishing(flow_run_id=RUN_ID, fence=7, execution_id=execution_id, outcome=outcome)


def execution_of(change: Change) -> Execution:
    assert change.execution is not None
    return change.execution


def cause_of(change: Change) -> Cause:
    assert change.transition is not None
    return change.transition.cause


def assert_waits_anew(change: Change, due: object) -> None:
    """The run waits without holder under the next fence, due when its last step says."""
    assert change.entry is not None
    assert (change.entry.phase, change.entry.fence) == (Phase.WAITING, 8)
    assert (change.entry.holder, change.entry.grant_time, change.entry.lease_expire_time) == (None, None, None)
    assert (due, due) == (change.entry.due_time, change.run.scheduled_start_time)
    assert change.transition is not None
    assert (State.SCHEDULED, due, AGENT_ID) == (
        change.run.state,
        change.transition.due_time,
        change.transition.agent_id,
    )
    assert change.run.start_time is None


def assert_ends(change: Change, state: State, cause: Cause) -> None:
    """The run is final: no entry is left, the fence is kept, and the execution has the same outcome."""
    assert change.entry is None
    assert (state, 7, LATER) == (change.run.state, change.run.fence, change.run.finish_time)
    assert cause is cause_of(change)
    execution = execution_of(change)
    assert (state, LATER) == (execution.outcome, execution.end_time)


def test_the_first_entry() -> None:
    """A new run waits, ranked by its priority; only a child that is cancelled with its parent names it."""
    parent = FlowRunId(UUID(int=3))
    run = a_flow_run(policy=Policy(priority=10), parent_id=parent)

    entry = first_entry(run, LANE_ID)

    assert (entry.phase, entry.fence, entry.due_time) == (Phase.WAITING, 0, NOON)
    assert (NOON - 10 * PRIORITY_WORTH, parent) == (entry.rank_time, entry.parent_id)
    assert first_entry(replace(run, policy=Policy(child_policy=ChildPolicy.ABANDON)), LANE_ID).parent_id is None


def test_priority_is_bounded() -> None:
    """The highest priority is worth no more than a few minutes of waiting, so nobody starves."""
    assert timedelta(minutes=5) == NOON - rank_time(NOON, PRIORITY_MAX)
    assert rank_time(NOON, 0) == NOON


def test_accept() -> None:
    """An accepted offer is held by the agent under the fence of the grant, and its execution begins."""
    run = a_flow_run(fence=0)

    change = accepted(an_entry(Phase.OFFERED), run, AGENT_ID, now=LATER, ttl=MINUTE)

    assert (change.run.state, change.run.fence, change.run.version) == (State.SUBMITTED, 7, 4)
    assert an_entry(Phase.HELD, lease_expire_time=LATER + MINUTE) == change.entry
    assert an_execution(started=False, accept_time=LATER) == change.execution
    assert change.transition is not None
    assert (
        change.transition.fence,
        change.transition.lease_grant_time,
        change.transition.agent_id,
    ) == (7, NOON, AGENT_ID)


def test_start() -> None:
    """A start makes the run RUNNING, renews its lease, and names its execution."""
    change = started(
        an_entry(), a_flow_run(State.SUBMITTED), an_execution(started=False), EXECUTION_ID, now=LATER, ttl=MINUTE
    )

    assert (change.run.state, change.run.start_time, cause_of(change)) == (State.RUNNING, LATER, Cause.STARTED)
    assert an_entry(lease_expire_time=LATER + MINUTE) == change.entry
    assert an_execution(start_time=LATER) == change.execution


def test_a_repeated_start() -> None:
    """The same execution may ask again: nothing moves, the lease is renewed."""
    run = a_flow_run(State.RUNNING)

    change = started(an_entry(), run, an_execution(), EXECUTION_ID, now=LATER, ttl=MINUTE)

    assert Change(before=run, held=an_entry(), run=run, entry=an_entry(lease_expire_time=LATER + MINUTE)) == change


def test_a_second_execution_is_refused() -> None:
    """One lease starts code at most once, and only that execution may report its end."""
    run = a_flow_run(State.RUNNING)

    with pytest.raises(ExecutionRefused):
        started(an_entry(), run, an_execution(), OTHER_EXECUTION, now=LATER, ttl=MINUTE)
    with pytest.raises(ExecutionRefused):
        finished(an_entry(), run, an_execution(), a_finish(Succeeded(), OTHER_EXECUTION), now=LATER)
    with pytest.raises(ExecutionRefused):
        finished(an_entry(), run, an_execution(), a_finish(Succeeded(), None), now=LATER)


def test_a_cancelling_run_does_not_start() -> None:
    """A run that is being stopped is answered as it is, and no execution is noted."""
    run = a_flow_run(State.CANCELLING)

    change = started(an_entry(Phase.STOPPING), run, an_execution(started=False), EXECUTION_ID, now=LATER, ttl=MINUTE)

    assert (run, None, None) == (change.run, change.transition, change.execution)


def test_renewal_never_shortens() -> None:
    """A lease that lasts longer already stays as it is."""
    assert renew(an_entry(), now=LATER, ttl=MINUTE).lease_expire_time == LATER + MINUTE
    assert renew(an_entry(), now=LATER, ttl=SECOND).lease_expire_time == NOON + MINUTE


def test_success() -> None:
    """A run that ended well keeps its result and forgets earlier failures."""
    run = a_flow_run(State.RUNNING, failure=FAILURE)

    change = finished(an_entry(), run, an_execution(), a_finish(Succeeded("42")), now=LATER)

    assert_ends(change, State.SUCCEEDED, Cause.FINISHED)
    assert (change.run.result_json, change.run.failure) == ("42", None)
    assert EndedBy.FINISH is execution_of(change).ended_by


def test_failure_without_retries() -> None:
    """A failure with no retry left is final and keeps its reason."""
    change = finished(an_entry(), a_flow_run(State.RUNNING), an_execution(), a_finish(FAILURE), now=LATER)

    assert_ends(change, State.FAILED, Cause.FINISHED)
    assert change.run.failure == FAILURE
    assert change.transition is not None
    assert change.transition.message == "no river"


def test_failure_with_retries() -> None:
    """A failure with retries left waits for the next attempt; its releases begin anew, its losses do not."""
    run = a_flow_run(State.RUNNING, retries_left=2, start_time=NOON, policy=Policy(retry_delay=MINUTE))
    entry = an_entry(releases=4, losses=2)

    change = finished(entry, run, an_execution(), a_finish(FAILURE), now=LATER)

    assert_waits_anew(change, LATER + MINUTE)
    assert (change.run.attempt, change.run.retries_left, change.run.failure) == (2, 1, FAILURE)
    assert change.entry is not None
    assert (change.entry.releases, change.entry.losses) == (0, 2)
    assert (cause_of(change), execution_of(change).outcome) == (Cause.RETRIED, State.FAILED)
    assert change.transition is not None
    assert (change.transition.attempt, change.transition.fence) == (2, 7)


def test_a_deployment_that_failed() -> None:
    """An attempt may fail before anything was started, and then nobody's execution is named."""
    change = finished(
        an_entry(), a_flow_run(State.SUBMITTED), an_execution(started=False), a_finish(FAILURE, None), now=LATER
    )

    assert_ends(change, State.FAILED, Cause.FINISHED)


def test_nothing_succeeds_that_never_started() -> None:
    """A success is refused while the run is only SUBMITTED."""
    with pytest.raises(MoveRefused):
        finished(an_entry(), a_flow_run(State.SUBMITTED), an_execution(started=False), a_finish(Succeeded()), now=LATER)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(Stopped("bye"), State.CANCELLED), (Succeeded("1"), State.SUCCEEDED), (FAILURE, State.FAILED)],
)
def test_the_end_of_a_cancelling_run(outcome: Outcome, state: State) -> None:
    """A run that is being stopped ends as its holder reports, and is never attempted again."""
    run = a_flow_run(State.CANCELLING, retries_left=5)

    change = finished(an_entry(Phase.STOPPING), run, an_execution(), a_finish(outcome), now=LATER)

    assert_ends(change, state, Cause.FINISHED)


def test_stopping_what_nobody_asked_to_stop() -> None:
    """A run that was not asked to stop cannot be reported as stopped."""
    with pytest.raises(MoveRefused):
        finished(an_entry(), a_flow_run(State.RUNNING), an_execution(), a_finish(Stopped()), now=LATER)


def test_a_declined_offer_counts_nothing() -> None:
    """An offer that is not taken is made again a second later, under another fence; the run itself does not move."""
    run = a_flow_run()

    change = declined(an_entry(Phase.OFFERED, releases=3), run, now=LATER)

    assert (run, None, None) == (change.run, change.transition, change.execution)
    assert change.entry is not None
    assert (
        change.entry.phase,
        change.entry.fence,
        change.entry.releases,
        change.entry.due_time,
    ) == (Phase.WAITING, 8, 3, LATER + SECOND)


def test_release() -> None:
    """A lease that is given back makes the run wait, and the release is counted and explained."""
    change = released(
        an_entry(releases=2),
        a_flow_run(State.SUBMITTED),
        an_execution(started=False),
        now=LATER,
        delay=timedelta(0),
        reason="no room",
    )

    assert_waits_anew(change, LATER + 4 * SECOND)
    assert change.entry is not None
    assert change.transition is not None
    assert (change.entry.releases, change.transition.message, cause_of(change)) == (3, "no room", Cause.RELEASED)
    assert EndedBy.RELEASE is execution_of(change).ended_by


def test_the_delay_of_releases() -> None:
    """Each release waits twice as long as the one before, up to a minute, unless more was asked."""
    seconds = [release_delay(count, timedelta(0)).total_seconds() for count in range(1, RELEASES_MAX + 1)]

    assert seconds == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert release_delay(10**6, timedelta(0)) == RELEASE_DELAY_MAX
    assert timedelta(hours=1) == release_delay(1, timedelta(hours=1))


@pytest.mark.parametrize("by", ["release", "expiry"])
def test_what_cannot_be_deployed_fails(by: str) -> None:
    """A run that was given back, or fell silent before it started, too often, FAILS as UNDEPLOYABLE."""
    run, execution = a_flow_run(State.SUBMITTED), an_execution(started=False)

    def end(releases: int) -> Change:
        entry = an_entry(releases=releases)
        if by == "expiry":
            return expired(entry, run, execution, now=LATER)
        return released(entry, run, execution, now=LATER, delay=timedelta(0), reason="no room")

    assert State.SCHEDULED is end(RELEASES_MAX - 1).run.state
    assert_ends(end(RELEASES_MAX), State.FAILED, Cause.UNDEPLOYABLE)
    failure = end(RELEASES_MAX).run.failure
    assert failure is not None
    assert failure.type == "Undeployable"


def test_a_loss() -> None:
    """A started run whose holder fell silent waits again at once, in the same attempt, and the loss is counted."""
    run = a_flow_run(State.RUNNING, start_time=NOON)

    change = expired(an_entry(), run, an_execution(), now=LATER)

    assert_waits_anew(change, LATER)
    assert change.entry is not None
    assert (change.entry.losses, change.entry.releases, change.run.attempt) == (1, 0, 1)
    assert (cause_of(change), execution_of(change).ended_by) == (Cause.LOST, EndedBy.EXPIRY)


def test_too_many_losses() -> None:
    """A run that was lost more often than its policy allows FAILS, even with retries left."""
    run = a_flow_run(State.RUNNING, retries_left=3, policy=Policy(max_lost_restarts=2))

    assert State.SCHEDULED is expired(an_entry(losses=1), run, an_execution(), now=LATER).run.state
    assert_ends(expired(an_entry(losses=2), run, an_execution(), now=LATER), State.FAILED, Cause.LOST)


def test_never_restarted_when_lost() -> None:
    """With no restart allowed, the first loss is final."""
    run = a_flow_run(State.RUNNING, policy=Policy(max_lost_restarts=0))

    assert_ends(expired(an_entry(), run, an_execution(), now=LATER), State.FAILED, Cause.LOST)


def test_a_run_for_which_nobody_comes() -> None:
    """It FAILS without a lease of its own, however many retries it has left, and says why."""
    run = a_flow_run(retries_left=3, fence=6)

    change = deserted(an_entry(Phase.WAITING), run, now=LATER)

    failure = Failure(type="Deserted", message="No process asked to execute it.")
    assert (change.run.failure, change.run.state, change.run.fence, change.run.retries_left) == (
        failure,
        State.FAILED,
        7,
        3,
    )
    assert change.run.finish_time == LATER
    assert change.transition is not None
    assert (change.transition.cause, change.transition.message, change.transition.agent_id) == (
        Cause.LOST,
        failure.message,
        None,
    )
    assert (change.entry, change.execution) == (None, None)


def test_a_stopping_run_that_falls_silent() -> None:
    """A run whose holder fell silent while stopping it is CANCELLED, and nobody confirmed it."""
    change = expired(an_entry(Phase.STOPPING), a_flow_run(State.CANCELLING), an_execution(), now=LATER)

    assert_ends(change, State.CANCELLED, Cause.UNCONFIRMED)


def test_a_stopping_run_that_is_given_back() -> None:
    """A run that was to be stopped and never began is CANCELLED when it is given back."""
    change = released(
        an_entry(Phase.STOPPING),
        a_flow_run(State.CANCELLING),
        an_execution(started=False),
        now=LATER,
        delay=timedelta(0),
        reason="",
    )

    assert_ends(change, State.CANCELLED, Cause.RELEASED)


def test_an_offer_is_a_lease_of_its_own() -> None:
    """It bears the next fence and lasts for its ttl; when that is over the run may be offered again."""
    holder = ProcessId(UUID(int=4))
    waiting = an_entry(Phase.WAITING, due_time=LATER)
    assert (True, False) == (waits(waiting, now=NOON), may_be_offered(waiting, now=NOON))
    assert may_be_offered(waiting, now=LATER)

    entry = offered(waiting, holder=holder, now=LATER, ttl=SECOND)

    assert (Phase.OFFERED, 8, holder, LATER, LATER + SECOND) == (
        entry.phase,
        entry.fence,
        entry.holder,
        entry.grant_time,
        entry.lease_expire_time,
    )
    assert not waits(entry, now=LATER)
    assert may_be_offered(entry, now=LATER + SECOND)


@pytest.mark.parametrize("phase", [Phase.HELD, Phase.STOPPING])
def test_what_is_held_does_not_wait(phase: Phase) -> None:
    """Not even once its lease has run out: to end that is the keeper's."""
    assert not waits(an_entry(phase), now=NOON + 2 * MINUTE)


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.OFFERED])
def test_what_nobody_holds_is_cancelled_at_once(phase: Phase) -> None:
    """The run is final with the entry's fence, and says why; an offer of it dies with the entry."""
    run = a_flow_run(fence=0)

    change = cancelled(an_entry(phase), run, None, now=LATER, cause=Cause.PARENT_CANCELLED, reason="so")

    assert change is not None
    assert (None, State.CANCELLED, 7, LATER) == (
        change.entry,
        change.run.state,
        change.run.fence,
        change.run.finish_time,
    )
    assert change.transition is not None
    assert (Cause.PARENT_CANCELLED, "so") == (change.transition.cause, change.transition.message)


def test_what_an_agent_holds_is_asked_to_stop() -> None:
    """Its lease goes on under the same fence; asked again, nothing changes."""
    run = a_flow_run(State.RUNNING)

    change = cancelled(an_entry(), run, an_execution(), now=LATER, cause=Cause.CANCEL_ASKED, reason="so")

    assert change is not None
    assert replace(an_entry(), phase=Phase.STOPPING) == change.entry
    assert State.CANCELLING is change.run.state
    assert change.transition is not None
    assert AGENT_ID == change.transition.agent_id
    again = cancelled(change.entry, change.run, an_execution(), now=LATER, cause=Cause.CANCEL_ASKED, reason="so")
    assert again is None
