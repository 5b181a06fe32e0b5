"""Creations against a model: flows registered, archived and given defaults, runs created, repeated and deleted.

The model knows which versions each group has, which one is live, what the group sets, which key has made which run and
what was asked then. It predicts every answer and refusal. After each step the database must agree with it, and a call
that is refused, or that repeats one before it, must have changed no row at all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias
from uuid import UUID

import pytest
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

from penstock.domain.errors import (
    FlowArchived,
    FlowGroupNotFound,
    FlowNameAmbiguous,
    FlowNotFound,
    FlowRunLive,
    InvalidRequest,
    KeyNotFound,
    KeyReused,
    NoLiveFlow,
    Refusal,
    Violation,
)
from penstock.domain.flow import GroupDefaults, Labels, Registration, RunConfig
from penstock.domain.flow_run import Cancelling, Created, Creation, FlowRun, FlowTarget, GroupTarget, KeyReuse, Target
from penstock.domain.ids import FlowGroupId, FlowId, FlowRunId, ProjectId
from penstock.domain.json_text import Json, Number, canonical, parse_object
from penstock.domain.parameters import Parameter, ParameterType
from penstock.domain.queries import FlowName
from penstock.domain.state import Cause, State
from penstock.flow_run import creation as creating
from penstock.flow_run import flow_operations, operations
from penstock.flow_run.flow_operations import FreshIds
from penstock.storage import schema
from penstock.storage.database import Database, Transaction, open_engine
from tests.queue.scenes import SECOND, TENANT
from tests.support.builders import a_creation, a_registration, an_id
from tests.support.databases import Databases, Kind
from tests.support.fake_clock import FakeClock

NAMES: Final = (("one", "a"), ("one", "b"), ("two", "a"))
NOBODY: Final = UUID(int=1)

# Versions that differ in what they declare, so that what one takes another refuses.
VARIANTS: Final[tuple[Mapping[str, Any], ...]] = (
    {"parameters": (Parameter("n", ParameterType.INTEGER, default_json="0"),), "labels": ("first", "flow")},
    {"parameters": (Parameter("n", ParameterType.INTEGER, required=True),), "labels": ("flow",)},
    {"parameters": (), "accepts_extra_parameters": True, "run_config": RunConfig(image="flow")},
)
GIVEN: Final[tuple[Mapping[str, Json], ...]] = (
    {"n": Number("1")},
    {"n": Number("2")},
    {},
    {"n": Number("1.0")},
    {"n": "1"},
    {"m": None},
)
SET_BY_GROUP: Final = (None, "{}", '{"n":7}', '{"m":""}')
LABELS: Final[tuple[Labels | None, ...]] = (None, (), ("own",))
CONFIGS: Final = (None, RunConfig(), RunConfig(image="own"))
# Few, so that most of them are used again.
KEYS: Final = (None, "k", "K")
REQUESTS: Final = (None, str(UUID(int=2)))
# All that these calls may write to.
TABLES: Final = (
    schema.projects,
    schema.flow_groups,
    schema.flows,
    schema.idempotency_keys,
    schema.lanes,
    schema.flow_runs,
    schema.transitions,
    schema.queue_entries,
)
Rows: TypeAlias = Mapping[str, list[Any]]
# How long ago something was made: mostly lately, so that long stories are told of few things.
RECENT: Final = st.one_of(st.integers(0, 1), st.integers(0, 9))


@dataclass(frozen=True)
class Asked:
    """What a key compares."""

    parameters: str
    context: str
    labels: Labels | None
    run_config: RunConfig | None

    def differing(self, other: "Asked") -> tuple[str, ...]:
        names = ("parameters", "context", "labels", "run_config")
        return tuple(name for name in names if getattr(self, name) != getattr(other, name))


@dataclass
class Version:
    id: FlowId
    group: "Group"
    variant: int


@dataclass
class Group:
    """What the model knows of a flow group."""

    id: FlowGroupId
    names: tuple[str, str]
    versions: list[Version] = field(default_factory=list)
    live: Version | None = None
    defaults: GroupDefaults = field(default_factory=GroupDefaults)

    def archived(self) -> tuple[str, ...]:
        return tuple(str(each.id) for each in reversed(self.versions) if each is not self.live)[:3]


@dataclass
class Run:
    """What the model knows of a run."""

    id: FlowRunId
    flow: Version
    parameters_json: str
    labels: Labels
    run_config: RunConfig
    key: str | None
    state: State = State.SCHEDULED


@dataclass
class Claim:
    """A key, or a request id, and the run that it made."""

    run_id: FlowRunId
    asked: Asked
    deleted: bool = False


def registration(variant: int, names: tuple[str, str] = ("", "")) -> Registration:
    return a_registration(project_name=names[0], name=names[1], **VARIANTS[variant])


def asked_by(creation: Creation) -> Asked:
    return Asked(canonical(creation.parameters), canonical(creation.context), creation.labels, creation.run_config)


def first(*choices: Any) -> Any:
    return next(each for each in choices if each is not None)


class Creations(RuleBasedStateMachine):
    """Calls the operations on a database and the model alike."""

    def __init__(self, databases: Databases, kind: Kind) -> None:
        super().__init__()
        self.databases = databases
        self.clock = FakeClock()
        self.url = databases.fresh(kind)
        self.engine = open_engine(self.url, connections=1)
        self.database = Database(self.engine, self.clock, threads=1)
        self.groups: dict[tuple[str, str], Group] = {}
        self.flows: list[Version] = []
        self.runs: dict[FlowRunId, Run] = {}
        self.made: list[FlowRunId] = []  # deleted ones too
        self.claims: dict[tuple[str, UUID, str], Claim] = {}
        self.last: Creation | None = None
        self.seen: Rows | None = None  # all rows, where nothing was done since they were read

    def teardown(self) -> None:
        self.database.close()
        self.databases.drop(self.url)

    def do(self, work: Callable[..., Any], *args: Any) -> Any:
        self.seen = None
        return self.database.run_here(work, TENANT, *args)

    def rows(self) -> Rows:
        def read(tx: Transaction) -> Rows:
            return {each.name: sorted(tx.conn.execute(each.select()), key=repr) for each in TABLES}

        return self.database.read_here(read)

    def unchanged(self, work: Callable[..., Any], *args: Any) -> Any:
        """The answer of a call that must change nothing, or its refusal."""
        before = self.seen or self.rows()
        try:
            answer = self.do(work, *args)
        except Refusal as refusal:
            answer = refusal
        self.seen = self.rows()
        assert before == self.seen, "a call that is refused, or a repeat, changed something"
        return answer

    def fresh(self) -> FreshIds:
        return FreshIds(ProjectId(an_id()), FlowGroupId(an_id()), FlowId(an_id()))

    def flow(self, which: int) -> Version:
        return self.flows[-1 - which % len(self.flows)]

    def keep(self, group: Group, flow_id: FlowId, variant: int) -> None:
        version = Version(flow_id, group, variant)
        group.versions.append(version)
        group.live = version
        self.flows.append(version)

    @initialize()
    def begin(self) -> None:
        self.name_nothing()
        self.register(NAMES[0], 0)

    def name_nothing(self) -> None:
        """A flow or a group that does not exist is refused by every call that names it, and claims no key."""
        by_flow = a_creation(target=FlowTarget(FlowId(NOBODY)), idempotency_key="k")
        by_group = a_creation(target=GroupTarget(FlowGroupId(NOBODY)), idempotency_key="k")
        refusals = self.unchanged(creating.create_flow_runs, [by_flow, by_group])
        assert [FlowNotFound, FlowGroupNotFound] == list(map(type, refusals))
        into = (self.fresh(), registration(0), FlowGroupId(NOBODY))
        assert isinstance(self.unchanged(flow_operations.register_flow, *into), FlowGroupNotFound)
        assert isinstance(self.unchanged(flow_operations.archive_flow, NOBODY), FlowNotFound)
        assert isinstance(self.unchanged(flow_operations.unarchive_flow, NOBODY), FlowNotFound)
        nothing = (NOBODY, GroupDefaults())
        assert isinstance(self.unchanged(flow_operations.update_flow_group, *nothing), FlowGroupNotFound)
        assert isinstance(self.unchanged(flow_operations.look_up_flow, NOBODY), FlowNotFound)

    @rule(names=st.sampled_from(NAMES), variant=st.sampled_from(range(len(VARIANTS))))
    def register(self, names: tuple[str, str], variant: int) -> None:
        group, asked = self.groups.get(names), registration(variant, names)
        if group and group.live and group.live.variant == variant:
            flow, created = self.unchanged(flow_operations.register_flow, self.fresh(), asked)
            assert (group.live.id, False) == (flow.id, created)
            return
        flow, created = self.do(flow_operations.register_flow, self.fresh(), asked)
        group = self.groups.setdefault(names, Group(flow.group_id, names))
        assert (True, group.id, len(group.versions) + 1) == (created, flow.group_id, flow.version)
        self.keep(group, flow.id, variant)

    @rule(which=RECENT, variant=st.sampled_from(range(len(VARIANTS))), named=st.sampled_from(("", "own", "other")))
    def register_into(self, which: int, variant: int, named: str) -> None:
        group = self.flow(which).group
        names = {"": ("", ""), "own": group.names, "other": ("other", group.names[1])}[named]
        given = (self.fresh(), registration(variant, names), group.id)
        if named == "other":
            refused = self.unchanged(flow_operations.register_flow, *given)
            assert isinstance(refused, InvalidRequest)
            assert ["project_name"] == [each.field for each in refused.violations]
            return
        if group.live and group.live.variant == variant:
            flow, created = self.unchanged(flow_operations.register_flow, *given)
            assert (group.live.id, False) == (flow.id, created)
            return
        flow, created = self.do(flow_operations.register_flow, *given)
        assert (True, group.id, len(group.versions) + 1) == (created, flow.group_id, flow.version)
        assert group.names == (flow.registration.project_name, flow.name)
        self.keep(group, flow.id, variant)

    @rule(which=RECENT)
    def archive(self, which: int) -> None:
        version = self.flow(which)
        if version.group.live is not version:
            flow = self.unchanged(flow_operations.archive_flow, version.id)
        else:
            flow = self.do(flow_operations.archive_flow, version.id)
            version.group.live = None
        assert flow.id == version.id
        assert flow.archive_time is not None

    @rule(which=RECENT)
    def unarchive(self, which: int) -> None:
        version = self.flow(which)
        if version.group.live is version:
            flow = self.unchanged(flow_operations.unarchive_flow, version.id)
        else:
            flow = self.do(flow_operations.unarchive_flow, version.id)
            version.group.live = version
        assert (version.id, None) == (flow.id, flow.archive_time)

    @rule(
        which=RECENT,
        parameters=st.sampled_from(SET_BY_GROUP),
        labels=st.sampled_from((None, (), ("group",))),
        run_config=st.sampled_from((None, RunConfig(), RunConfig(image="group"))),
    )
    def update_group(
        self, which: int, parameters: str | None, labels: Labels | None, run_config: RunConfig | None
    ) -> None:
        group = self.flow(which).group
        defaults = GroupDefaults(parameters, labels, run_config)
        work = self.unchanged if defaults == group.defaults else self.do
        updated = work(flow_operations.update_flow_group, group.id, defaults)
        group.defaults = defaults
        assert (parameters, labels, run_config) == (
            updated.default_parameters_json,
            updated.labels,
            updated.run_config,
        )

    @rule(which=RECENT, by=st.sampled_from(("flow", "group", "name")))
    def look_up(self, which: int, by: str) -> None:
        version = self.flow(which)
        group = version.group
        same = [names for names in self.groups if names[1] == group.names[1]]
        reference: Any = {"flow": version.id, "group": group.id, "name": FlowName(group.names[1])}[by]
        answer = self.unchanged(flow_operations.look_up_flow, reference)
        if by == "name" and len(same) > 1:
            assert isinstance(answer, FlowNameAmbiguous)
            assert tuple(sorted(project for project, _ in same)) == answer.projects
        elif by == "flow":
            assert version.id == answer.id
        elif group.live:
            assert group.live.id == answer.id
        else:
            assert isinstance(answer, NoLiveFlow)
            assert (str(group.id), group.archived()) == (answer.flow_group_id, answer.archived)

    @rule(
        which=RECENT,
        by=st.sampled_from(("flow", "live", "group")),
        key=st.sampled_from(KEYS),
        request_id=st.sampled_from(REQUESTS),
        reuse=st.sampled_from(KeyReuse),
        parameters=st.sampled_from((*GIVEN[:3], *GIVEN)),
        context=st.sampled_from(({}, {"a": "b"})),
        labels=st.sampled_from(LABELS),
        run_config=st.sampled_from(CONFIGS),
    )
    def create(
        self,
        which: int,
        by: str,
        key: str | None,
        request_id: str | None,
        reuse: KeyReuse,
        parameters: Mapping[str, Json],
        context: Mapping[str, Json],
        labels: Labels | None,
        run_config: RunConfig | None,
    ) -> None:
        version = self.flow(which)
        live = version.group.live or version
        target: Target = (
            GroupTarget(version.group.id) if by == "group" else FlowTarget(live.id if by == "live" else version.id)
        )
        self._create(
            a_creation(
                target=target,
                idempotency_key=key,
                request_id=request_id,
                key_reuse=reuse,
                parameters=parameters,
                context=context,
                labels=labels,
                run_config=run_config,
            )
        )

    @rule(
        which=RECENT,
        key=st.sampled_from(KEYS),
        request_id=st.sampled_from(REQUESTS),
        labels=st.sampled_from(LABELS),
        ends=st.booleans(),
    )
    def create_plainly(
        self, which: int, key: str | None, request_id: str | None, labels: Labels | None, ends: bool
    ) -> None:
        """As most do, of a live flow, with parameters that fit. Some runs end, and are asked for again."""
        group = self.flow(which).group
        if group.live is None:
            self.unarchive(which)
        target, given = GroupTarget(group.id), {"n": Number("1")}
        asked = a_creation(target=target, idempotency_key=key, request_id=request_id, parameters=given, labels=labels)
        self._create(asked)
        if ends and asked.flow_run_id in self.runs:
            self.end(which=0, cancel=True, delete=True)
            self.retry(other={})

    @precondition(lambda self: self.last is not None)
    @rule(other=st.sampled_from(({}, {"labels": ("other",)}, {"parameters": {"n": Number("9")}, "context": {"c": ""}})))
    def retry(self, other: Mapping[str, Any]) -> None:
        """The last creation again, as it was or with something changed, by someone who drew another id."""
        assert self.last is not None
        self._create(replace(self.last, flow_run_id=FlowRunId(an_id()), **other))

    def _create(self, creation: Creation) -> None:
        self.clock.advance(SECOND)
        self.last = creation
        claim = next((self.claims[each] for each in self._keys(creation) if each in self.claims), None)
        if claim is not None:
            self._expect_repeat(creation, claim)
            return
        refusal, run = self._planned(creation)
        if refusal is not None:
            (refused,) = self.unchanged(creating.create_flow_runs, [creation])
            assert (type(refusal), refusal.metadata()) == (type(refused), refused.metadata())
            return
        assert run is not None
        (created,) = self.do(creating.create_flow_runs, [creation])
        assert isinstance(created, Created)
        assert (run.id, True, (), None) == (
            created.flow_run_id,
            created.fresh,
            created.differing_fields,
            created.delete_time,
        )
        self.runs[run.id] = run
        self.made.append(run.id)
        self.claims |= dict.fromkeys(self._keys(creation), Claim(run.id, asked_by(creation)))

    def _expect_repeat(self, creation: Creation, claim: Claim) -> None:
        (answer,) = self.unchanged(creating.create_flow_runs, [creation])
        differing = claim.asked.differing(asked_by(creation))
        if differing and creation.key_reuse is KeyReuse.REFUSE_IF_DIFFERENT:
            assert isinstance(answer, KeyReused)
            assert (str(claim.run_id), differing) == (answer.flow_run_id, answer.differing_fields)
            return
        assert isinstance(answer, Created)
        assert (claim.run_id, False, differing) == (answer.flow_run_id, answer.fresh, answer.differing_fields)
        assert claim.deleted == (answer.delete_time is not None) == (answer.flow_run is None)

    def _keys(self, creation: Creation) -> list[tuple[str, UUID, str]]:
        by_flow = isinstance(creation.target, FlowTarget)
        target = creation.target.flow_id if isinstance(creation.target, FlowTarget) else creation.target.flow_group_id
        key, request_id = creation.idempotency_key, creation.request_id
        keyed = [("flow" if by_flow else "flow_group", target, key)] if key else []
        return [*keyed, *([("request", UUID(int=0), request_id)] if request_id else [])]

    def _planned(self, creation: Creation) -> tuple[Refusal | None, Run | None]:
        """What becomes of a creation that no key has made before."""
        target = creation.target
        if isinstance(target, FlowTarget):
            version = next(each for each in self.flows if each.id == target.flow_id)
            group = version.group
            if group.live and group.live is not version:
                return FlowArchived(flow_id=str(version.id), live_flow_id=str(group.live.id)), None
        else:
            group = next(each for each in self.groups.values() if each.id == target.flow_group_id)
        if group.live is None:
            return NoLiveFlow(flow_group_id=str(group.id), archived=group.archived()), None
        asked = VARIANTS[group.live.variant]
        of_group = parse_object(group.defaults.default_parameters_json or "")
        given = {**of_group, **creation.parameters}
        if wrong := self._wrong(asked, given, of_group.keys() - creation.parameters.keys()):
            return wrong, None
        own = {each.name: Number(each.default_json) for each in asked["parameters"] if each.default_json}
        return None, Run(
            creation.flow_run_id,
            group.live,
            canonical({**own, **given}),
            first(creation.labels, group.defaults.labels, asked.get("labels", ())),
            first(creation.run_config, group.defaults.run_config, asked.get("run_config", RunConfig())),
            creation.idempotency_key,
        )

    def _wrong(self, asked: Mapping[str, Any], given: Mapping[str, Json], of_group: set[str]) -> InvalidRequest | None:
        """Here the only parameter that is ever declared is the integer n."""
        if asked.get("accepts_extra_parameters"):
            return None
        kinds = {"1": "string", "1.0": "number"}
        sentences = []
        if asked["parameters"][0].required and "n" not in given:
            sentences.append("'n' is required")
        told = {name: f"{name!r}, which the flow group sets," if name in of_group else repr(name) for name in given}
        sentences += [f"{told[name]} is not a parameter of the flow" for name in given if name != "n"]
        n = given.get("n")
        if n is not None and not (isinstance(n, Number) and n.isdigit()):
            sentences.append(f"{told['n']} must be of type integer, not {kinds[str(n)]}")
        return InvalidRequest(tuple(Violation("parameters_json", each) for each in sentences)) if sentences else None

    @rule(which=RECENT, by_group=st.booleans(), key=st.sampled_from(("k", "K", "unused")))
    def get_by_key(self, which: int, by_group: bool, key: str) -> None:
        version = self.flow(which)
        target: Target = GroupTarget(version.group.id) if by_group else FlowTarget(version.id)
        claim = self.claims.get(self._keys(a_creation(target=target, idempotency_key=key))[0])
        answer = self.unchanged(creating.get_flow_run_by_key, target, key)
        if claim is None:
            assert isinstance(answer, KeyNotFound)
            return
        assert isinstance(answer, Created)
        assert (claim.run_id, False) == (answer.flow_run_id, answer.fresh)
        assert claim.deleted == (answer.delete_time is not None) == (answer.flow_run is None)

    @precondition(lambda self: self.made)
    @rule(which=RECENT, cancel=st.booleans(), delete=st.booleans())
    def end(self, which: int, cancel: bool, delete: bool) -> None:
        """A run is cancelled, deleted, or first the one and then the other."""
        run_id = self.made[-1 - which % len(self.made)]
        run = self.runs.get(run_id)
        if cancel and run is not None and run.state is State.SCHEDULED:
            (answer,) = self.do(operations.cancel_flow_runs, [Cancelling(run_id)])
            assert isinstance(answer, FlowRun)
            run.state = State.CANCELLED
        if not delete:
            return
        if run is None:
            assert self.unchanged(operations.delete_flow_run, run_id) is False
        elif run.state is State.SCHEDULED:
            assert isinstance(self.unchanged(operations.delete_flow_run, run_id), FlowRunLive)
        else:
            assert self.do(operations.delete_flow_run, run_id) is True
            self._forget(run_id)

    def _forget(self, run_id: FlowRunId) -> None:
        """Of a deleted run only its idempotency key stays; its request id may make another run."""
        del self.runs[run_id]
        for key in [key for key, claim in self.claims.items() if claim.run_id == run_id]:
            if key[0] == "request":
                del self.claims[key]
            else:
                self.claims[key].deleted = True

    @invariant()
    def the_database_agrees(self) -> None:
        """Every version, run, place in the queue, first step and key is as the model has it."""

        self.seen = self.seen or self.rows()
        flows, runs = self.seen["flows"], self.seen["flow_runs"]
        entries, steps, keys = self.seen["queue_entries"], self.seen["transitions"], self.seen["idempotency_keys"]
        for group in self.groups.values():
            own = sorted((each for each in flows if each.flow_group_id == group.id), key=lambda each: each.version)
            assert [each.id for each in group.versions] == [each.flow_id for each in own]
            assert list(range(1, len(own) + 1)) == [each.version for each in own], "a version is missing, or twice"
            live = [each.flow_id for each in own if each.archive_time is None]
            assert ([group.live.id] if group.live else []) == live, "not the live flow, or not the only one"
        assert len(self.flows) == len(flows)
        assert self.runs.keys() == {each.flow_run_id for each in runs}
        for row in runs:
            run = self.runs[row.flow_run_id]
            assert (run.flow.id, run.flow.group.id, run.parameters_json, run.labels, run.run_config) == (
                row.flow_id,
                row.flow_group_id,
                row.parameters_json,
                row.labels,
                row.run_config,
            )
            assert (run.key, run.state) == (row.idempotency_key, row.state)
        waiting = sorted(run.id for run in self.runs.values() if run.state is State.SCHEDULED)
        assert waiting == sorted(each.flow_run_id for each in entries), "no place in the queue, or one too many"
        births = sorted(each.flow_run_id for each in steps if each.version == 1 and each.cause is Cause.CREATED)
        assert sorted(self.runs) == births, "a run without its first step, or a step without its run"
        assert {each: (claim.run_id, claim.deleted) for each, claim in self.claims.items()} == {
            (each.target_kind, each.target_id, each.key): (each.flow_run_id, each.delete_time is not None)
            for each in keys
        }


@pytest.mark.parametrize("database_kind", ["sqlite", "postgres"], indirect=True)
def test_creations_behave_as_the_model(databases: Databases, database_kind: Kind) -> None:
    """No order of registrations, defaults, creations, repeats and deletions breaks a promise of a key or a version."""
    bounded = settings(
        max_examples=30,
        stateful_step_count=30,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(lambda: Creations(databases, database_kind), settings=bounded)  # type: ignore[arg-type]
