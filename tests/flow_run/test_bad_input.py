"""Whatever is wrong with a request, it is refused by the name of the field, and nothing at all is changed.

And what is merely odd is kept faithfully. Both through the real services on a socket, on both databases.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from flowrun.v1 import flow_pb2, flow_run_pb2, lease_pb2
from flowrun.v1 import flow_run_service_pb2 as runs
from flowrun.v1 import flow_service_pb2 as flows
from penstock.domain import limits
from penstock.storage.database import Database
from tests.flow_run.served import FlowRunProcess, refused, serving
from tests.queue.scenes import everything

SQL: Final = "'; DROP TABLE flow_runs; --"
LARGE: Final = "x" * (limits.PARAMETERS_BYTES_MAX + 1)
SOMEBODY: Final = "01980000-0000-7000-8000-000000000001"
INT64_MAX: Final = 2**63 - 1

# What no name may be, whatever bears it.
BAD_NAMES: Final = {
    "white space": "\u2003 ",
    "NUL": "a\0b",
    "a line break": "a\nb",
    "an escape": "\x1b[2J",
    "another direction of writing": "report\u202efdp",
    "an isolate": "\u2067a\u2069",
    "a combining mark at its beginning": "\u0301a",
    "a heap of combining marks": "a" + "\u0489" * 9,
    "something that cannot be seen": "a\u200bb",
    "too many characters": "é" * 256,
    "megabytes": "x" * 3_900_000,
}
BAD_LABELS: Final = {**BAD_NAMES, "SQL": SQL, "a comma": "a,b", "an end of white space": "a ", "reserved": "penstock:x"}
BAD_JSON: Final = {
    "no JSON": "{'a': 1}",
    "half an object": '{"a": ',
    "no object": "[1]",
    "a bare NUL": '{"a": "\0"}',
    "half of a pair": '{"a": "\\ud800"}',
    "NaN": '{"a": NaN}',
    "infinity": '{"a": -Infinity}',
    "a number beyond all bounds": '{"a": 1e400}',
    "a number of too many digits": f'{{"a": {"1" * 4301}}}',
    "a name twice": '{"a": 1, "a": 2}',
    "too deep": '{"a":' * 100 + "{}" + "}" * 100,
    "so deep that a reader falls": '{"a":' + "[" * 100_000,
    "too large": f'{{"a": "{LARGE}"}}',
}
BAD_IDS: Final = ("x", SOMEBODY[:-1], f"{{{SOMEBODY}}}", SQL, "\0", "0" * 1_000_000)


@dataclass(frozen=True)
class Bad:
    """A request that is wrong in just these fields."""

    what: str
    call: str
    request: Message
    fields: tuple[str, ...]


def bad_creations(flow: flow_pb2.Flow) -> Iterator[Bad]:
    def bad(what: str, field: str, **asked: Any) -> Bad:
        target: dict[str, Any] = {} if asked.keys() & {"flow_id", "flow_group_id"} else {"flow_id": flow.flow_id}
        return Bad(what, "CreateFlowRun", runs.CreateFlowRunRequest(**target, **asked), (field,))

    yield Bad("no target", "CreateFlowRun", runs.CreateFlowRunRequest(), ("target",))
    for text in ("", *BAD_IDS):
        yield bad("a bad flow", "flow_id", flow_id=text)
        yield bad("a bad group", "flow_group_id", flow_group_id=text)
    for what, text in BAD_NAMES.items():
        yield bad(f"a name of {what}", "name", name=text)
    for what, text in BAD_LABELS.items():
        yield bad(f"a label of {what}", "labels[1]", labels=flow_run_pb2.Labels(labels=["ok", text]))
    yield bad("no label", "labels[0]", labels=flow_run_pb2.Labels(labels=[""]))
    for count in (65, 10_000, 700_000):
        labels = flow_run_pb2.Labels(labels=[str(number % 1_000) for number in range(count)])
        yield bad(f"{count} labels", "labels", labels=labels)
    for what, text in BAD_JSON.items():
        yield bad(f"parameters of {what}", "parameters_json", parameters_json=text)
        yield bad(f"a context of {what}", "context_json", context_json=text)
    for what, text in {
        "missing": "{}",
        "unknown": '{"n": 1, "m": 2}',
        "unknown SQL": f'{{"n": 1, "{SQL}": 2}}',
        "of another type": '{"n": "1"}',
        "null": '{"n": null}',
        "no integers": '{"n": 1.0}',
    }.items():
        yield bad(f"parameters that are {what}", "parameters_json", parameters_json=text)
    for what, text in {
        "nothing": "",
        "white space": " ",
        "NUL": "a\0",
        "a control": "a\r",
        "length": "k" * 256,
    }.items():
        yield bad(f"a key of {what}", "idempotency_key", idempotency_key=text)
    for text in BAD_IDS:
        yield bad("a bad request id", "request_id", request_id=text)
    yield bad("an unknown key reuse", "key_reuse", key_reuse=99)
    for time in (Timestamp(seconds=2**62), Timestamp(seconds=-(2**62)), Timestamp(nanos=-1)):
        yield bad("no time", "scheduled_start_time", scheduled_start_time=time)
    for delay in (Duration(seconds=-1), Duration(seconds=2**62), Duration(seconds=1, nanos=-1)):
        yield bad("no delay", "start_delay", start_delay=delay)
    yield bad("two starts", "start_delay", start_delay=Duration(), scheduled_start_time=Timestamp())
    yield bad("a bad parent", "parent.flow_run_id", parent=lease_pb2.Lease(flow_run_id="x", fence=1))
    for fence in (0, -1, -INT64_MAX):
        lease = lease_pb2.Lease(flow_run_id=SOMEBODY, fence=fence)
        yield bad("a bad fence", "parent.fence", parent=lease)
    policies: dict[str, Any] = {
        "priority": 101,
        "max_retries": 2**31 - 1,
        "max_lost_restarts": -1,
        "retry_delay": Duration(seconds=-1),
        "log_level": 99,
        "child_policy": -1,
    }
    for name, value in policies.items():
        yield bad("a bad policy", f"policy.{name}", policy=flow_run_pb2.FlowRunPolicy(**{name: value}))
    yield from (bad("a bad run config", field, run_config=config) for field, config in bad_run_configs())


def bad_run_configs() -> Iterator[tuple[str, flow_run_pb2.RunConfig]]:
    config = flow_run_pb2.RunConfig
    yield "run_config.environment['A=B']", config(environment={"A=B": ""})
    yield "run_config.environment['']", config(environment={"": ""})
    yield "run_config.environment['A']", config(environment={"A": "\0"})
    yield "run_config.environment", config(environment={f"V{number}": "" for number in range(257)})
    yield "run_config.working_directory", config(working_directory="\0")
    yield "run_config.image", config(image="x" * 4_097)
    yield "run_config.resources['\\x1b']", config(resources={"\x1b": "1"})
    yield "run_config", config(environment={"A": "x" * 3_900_000})


def bad_requests_about_runs(run_id: str) -> Iterator[Bad]:
    for text in ("", *BAD_IDS):
        for call in ("GetFlowRun", "CancelFlowRun", "DeleteFlowRun", "ListTransitions", "WatchFlowRun"):
            yield Bad(
                f"{call} of {text[:9]!r}", call, getattr(runs, f"{call}Request")(flow_run_id=text), ("flow_run_id",)
            )
    yield Bad("no target", "GetFlowRunByKey", runs.GetFlowRunByKeyRequest(idempotency_key="k"), ("target",))
    by_key = runs.GetFlowRunByKeyRequest(flow_id="x", idempotency_key="\0")
    yield Bad("a bad key", "GetFlowRunByKey", by_key, ("flow_id", "idempotency_key"))
    for count in (0, 1_001):
        batch = runs.BatchCreateFlowRunsRequest(requests=[runs.CreateFlowRunRequest()] * count)
        yield Bad(f"a batch of {count}", "BatchCreateFlowRuns", batch, ("requests",))
    listing: Any = runs.ListFlowRunsRequest  # whose states, to the type checker, are never unknown ones
    yield Bad("a negative page", "ListFlowRuns", listing(page_size=-1), ("page_size",))
    yield Bad("bad filters", "ListFlowRuns", listing(flow_id="x", name="\n"), ("flow_id", "name"))
    yield Bad("an unknown state", "ListFlowRuns", listing(states=[1, 99]), ("states[1]",))
    yield Bad("a million states", "ListFlowRuns", listing(states=[1] * 1_000_000), ("states",))
    steps = runs.ListTransitionsRequest(flow_run_id=run_id, page_size=-(2**31))
    yield Bad("a negative page of steps", "ListTransitions", steps, ("page_size",))
    watch = runs.WatchFlowRunRequest(flow_run_id=run_id, after_version=-1)
    yield Bad("a negative version", "WatchFlowRun", watch, ("after_version",))
    for fence in (0, -1):
        start = runs.StartFlowRunRequest(flow_run_id=run_id, fence=fence, execution_id="x")
        yield Bad("a bad start", "StartFlowRun", start, ("fence", "execution_id"))
    for text in BAD_JSON:
        if text != "no object":
            outcome = runs.Succeeded(result_json=BAD_JSON[text])
            finish = runs.FinishFlowRunRequest(flow_run_id=run_id, fence=1, succeeded=outcome)
            yield Bad(f"a result of {text}", "FinishFlowRun", finish, ("succeeded.result_json",))
    nothing = runs.FinishFlowRunRequest(flow_run_id=run_id, fence=1)
    yield Bad("no outcome", "FinishFlowRun", nothing, ("outcome",))
    for reason in ("\0", "x" * 1_001, "x" * 3_900_000):
        cancel = runs.CancelFlowRunRequest(flow_run_id=run_id, reason=reason)
        yield Bad("a bad reason", "CancelFlowRun", cancel, ("reason",))
    for version in (0, -1):
        restart = runs.RestartFlowRunRequest(flow_run_id=run_id, version=version)
        yield Bad("a bad version", "RestartFlowRun", restart, ("version",))


def bad_requests_about_flows(flow: flow_pb2.Flow) -> Iterator[Bad]:
    python = flow_pb2.EntryPoint(python="levels.py:main")

    def bad(what: str, *fields: str, **asked: Any) -> Bad:
        whole: dict[str, Any] = {"project_name": "water", "name": "new", "entry_point": python}
        return Bad(what, "RegisterFlow", flows.RegisterFlowRequest(**(whole | asked)), fields)

    for what, text in {"nothing": "", **BAD_NAMES}.items():
        yield bad(f"a flow's name of {what}", "name", name=text)
        yield bad(f"a project's name of {what}", "project_name", project_name=text)
        whole = ("parameters",) if what == "megabytes" else ()
        named = [flow_pb2.Parameter(name=text)]
        yield bad(f"a parameter of {what}", "parameters[0].name", *whole, parameters=named)
        yield Bad(f"a project of {what}", "CreateProject", flows.CreateProjectRequest(name=text), ("name",))
        reference = flows.LookUpFlowRequest(name=flows.FlowName(name=text))
        yield Bad(f"a look-up of {what}", "LookUpFlow", reference, ("name.name",))
        if text:
            yield Bad(f"flows of {what}", "ListFlows", flows.ListFlowsRequest(name=text), ("name",))
    for what, text in BAD_LABELS.items():
        yield bad(f"a label of {what}", "labels[1]", labels=["ok", text])
        update = flows.UpdateFlowGroupRequest(
            flow_group_id=flow.flow_group_id, labels=flow_run_pb2.Labels(labels=["ok", text])
        )
        yield Bad(f"a group's label of {what}", "UpdateFlowGroup", update, ("labels[1]",))
    yield bad("the label of runs without agent", "labels[0]", labels=["penstock:agentless"])
    for what, text in BAD_JSON.items():
        update = flows.UpdateFlowGroupRequest(flow_group_id=flow.flow_group_id, default_parameters_json=text)
        yield Bad(f"a group's default of {what}", "UpdateFlowGroup", update, ("default_parameters_json",))
        if what not in ("no object", "too large"):
            declared = flow_pb2.Parameter(name="n", default_json=text)
            yield bad(f"a default of {what}", "parameters[0].default_json", parameters=[declared])
    large = flow_pb2.Parameter(name="n", default_json=f'"{LARGE}"')
    yield bad("parameters that are too large", "parameters", "parameters[0].default_json", parameters=[large])
    twice = [flow_pb2.Parameter(name="n")] * 2
    yield bad("a parameter twice", "parameters[1].name", parameters=twice)
    yield bad("too many parameters", "parameters", parameters=[flow_pb2.Parameter(name=f"{n}") for n in range(501)])
    yield bad("an unknown type", "parameters[0].type", parameters=[flow_pb2.Parameter(name="n", type=7)])  # type: ignore[arg-type]
    yield bad("no entry point", "entry_point", entry_point=flow_pb2.EntryPoint())
    yield bad("no function", "entry_point.python", entry_point=flow_pb2.EntryPoint(python="levels.py"))
    command = flow_pb2.EntryPoint(command=flow_pb2.Command(arguments=["a", "\0"]))
    yield bad("a bad command", "entry_point.command.arguments[1]", entry_point=command)
    yield bad("a long description", "description", description="x" * 10_001)
    yield bad("a bad group", "flow_group_id", flow_group_id="x")
    yield bad("another group", "project_name", "name", flow_group_id=flow.flow_group_id, project_name="x")
    yield from (bad("a bad run config", field, run_config=config) for field, config in bad_run_configs())
    for text in ("", *BAD_IDS):
        for call in ("GetFlow", "ArchiveFlow", "UnarchiveFlow"):
            yield Bad(f"{call} of {text[:9]!r}", call, getattr(flows, f"{call}Request")(flow_id=text), ("flow_id",))
        for call in ("GetFlowGroup", "UpdateFlowGroup"):
            request = getattr(flows, f"{call}Request")(flow_group_id=text)
            yield Bad(f"{call} of {text[:9]!r}", call, request, ("flow_group_id",))
        yield Bad(f"look-up of {text[:9]!r}", "LookUpFlow", flows.LookUpFlowRequest(id=text), ("id",))
    yield Bad("no reference", "LookUpFlow", flows.LookUpFlowRequest(), ("reference",))
    yield Bad("a negative page", "ListFlows", flows.ListFlowsRequest(page_size=-1), ("page_size",))
    yield Bad("a negative page", "ListProjects", flows.ListProjectsRequest(page_size=-1), ("page_size",))


async def a_flow(process: FlowRunProcess, **asked: Any) -> flow_pb2.Flow:
    request = flows.RegisterFlowRequest(
        project_name="water",
        name="levels",
        entry_point=flow_pb2.EntryPoint(python="levels.py:main"),
        parameters=[flow_pb2.Parameter(name="n", type=flow_pb2.PARAMETER_TYPE_INTEGER, required=True)],
    )
    request.MergeFrom(flows.RegisterFlowRequest(**asked))
    flow: flow_pb2.Flow = (await process.flows.RegisterFlow(request)).flow
    return flow


async def create(process: FlowRunProcess, flow: flow_pb2.Flow, **asked: Any) -> flow_run_pb2.FlowRun:
    request = runs.CreateFlowRunRequest(**({"flow_id": flow.flow_id, "parameters_json": '{"n":1}'} | asked))
    created = await process.flow_runs.CreateFlowRun(request)
    run: flow_run_pb2.FlowRun = (
        await process.flow_runs.GetFlowRun(runs.GetFlowRunRequest(flow_run_id=created.flow_run.flow_run_id))
    ).flow_run
    return run


async def test_whatever_is_wrong_is_named_and_changes_nothing(database: Database) -> None:
    """Each gets INVALID_ARGUMENT with just the fields that are wrong, and every row of every table stays as it was."""
    async with serving(database) as process:
        flow = await a_flow(process)
        run = await create(process, flow)
        before = await everything(database)
        cases = [
            *((process.flow_runs, each) for each in bad_creations(flow)),
            *((process.flow_runs, each) for each in bad_requests_about_runs(run.flow_run_id)),
            *((process.flows, each) for each in bad_requests_about_flows(flow)),
        ]

        for stub, bad in cases:
            refusal = await refused(getattr(stub, bad.call)(bad.request))
            told = (refusal.code, refusal.reason, {each.field for each in refusal.violations})
            assert (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", set(bad.fields)) == told, bad.what
            assert all(each.description for each in refusal.violations), bad.what

        assert before == await everything(database)


async def test_forged_page_tokens_are_refused(database: Database) -> None:
    """Of another query, of nobody, cut or lengthened: each is refused as no token of this query."""
    async with serving(database) as process:
        flow = await a_flow(process)
        for _ in range(2):
            await create(process, flow)
        page = await process.flow_runs.ListFlowRuns(runs.ListFlowRunsRequest(page_size=1))
        token = page.next_page_token
        before = await everything(database)
        listing = process.flow_runs.ListFlowRuns
        refusals = [
            await refused(listing(runs.ListFlowRunsRequest(page_token=forged)))
            for forged in ("x", SQL, "é", "A" * 54, token[:-2], token + "AA", "A" + token[1:], "\0", "x" * 1_000_000)
        ]
        refusals += [
            await refused(listing(runs.ListFlowRunsRequest(page_token=token, flow_id=flow.flow_id))),
            await refused(process.flows.ListFlows(flows.ListFlowsRequest(page_token=token))),
        ]

        assert {(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")} == {
            (each.code, each.reason) for each in refusals
        }
        assert before == await everything(database)


async def test_a_bad_item_of_a_batch_is_refused_alone(database: Database) -> None:
    """Its outcome says what CreateFlowRun would have said; the others are created."""
    async with serving(database) as process:
        flow = await a_flow(process)
        good: dict[str, Any] = {"flow_id": flow.flow_id, "parameters_json": '{"n":1}'}
        items = [
            runs.CreateFlowRunRequest(**good),
            runs.CreateFlowRunRequest(**good, name="a\0"),
            runs.CreateFlowRunRequest(**(good | {"parameters_json": "{}"})),
            runs.CreateFlowRunRequest(**good, name=SQL),
        ]
        answer = await process.flow_runs.BatchCreateFlowRuns(runs.BatchCreateFlowRunsRequest(requests=items))

    assert [True, False, False, True] == [each.response.created for each in answer.outcomes]
    refusals = [each.refusal for each in answer.outcomes if each.HasField("refusal")]
    assert [(3, "INVALID_REQUEST")] * 2 == [(each.code, each.reason) for each in refusals]
    assert "name: holds a NUL character" in refusals[0].message
    assert "parameters_json: 'n' is required" in refusals[1].message


ODD_NAMES: Final = [
    SQL,
    "%_*?\\",
    "a\u00a0b ",
    "--help",
    "../../etc/passwd",
    "${HOME}; rm -rf / `id` $(id)",
    "<script>alert(1)</script>",
    "{{7*7}} %s %(x)s {0}",
    "NULL",
    "שלום עולם",
    "مرحبا",
    "नमस्ते",
    unicodedata.normalize("NFC", "é"),
    unicodedata.normalize("NFD", "é"),
    "👩\u200d👩\u200d👧\u200d👦 🇨🇭",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "é" * 255,
]


async def test_odd_names_are_kept_faithfully(database: Database) -> None:
    """Of projects, flows, runs and in keys: as they were given, and found again by just that name."""
    async with serving(database) as process:
        for name in ODD_NAMES:
            flow = await a_flow(process, project_name=name, name=name)
            run = await create(process, flow, name=name, idempotency_key=name)
            found = await process.flows.LookUpFlow(flows.LookUpFlowRequest(name=flows.FlowName(name=name)))
            listed = await process.flow_runs.ListFlowRuns(runs.ListFlowRunsRequest(name=name))
            keyed = await process.flow_runs.GetFlowRunByKey(
                runs.GetFlowRunByKeyRequest(flow_id=flow.flow_id, idempotency_key=name)
            )

            assert (name, name) == (found.flow.project_name, found.flow.name)
            assert (name, name, name) == (run.name, run.flow_name, run.idempotency_key)
            assert [run.flow_run_id] == [each.flow_run_id for each in listed.flow_runs]
            assert run == keyed.flow_run
        projects = await process.flows.ListProjects(flows.ListProjectsRequest())

    assert sorted(ODD_NAMES) == sorted(each.name for each in projects.projects)


async def test_odd_labels_are_kept_faithfully(database: Database) -> None:
    """Of any script, and as many and as long as allowed."""
    odd = ["a/b=c:d", "größe", "קו", "%_", "$HOME", "(a|b)*", "👍🏽", "x y", "é", "e\u0301"]
    many = [f"{number:0{limits.LABEL_CHARACTERS_MAX}}" for number in range(limits.LABELS_MAX)]
    async with serving(database) as process:
        flow = await a_flow(process, labels=odd)
        own = await create(process, flow)
        given = await create(process, flow, labels=flow_run_pb2.Labels(labels=[*many, *many]))
        none = await create(process, flow, labels=flow_run_pb2.Labels())
        agentless = await create(process, flow, labels=flow_run_pb2.Labels(labels=["penstock:agentless"]))

    assert sorted(odd) == list(own.labels)
    assert many == list(given.labels)
    assert [] == list(none.labels)
    assert ["penstock:agentless"] == list(agentless.labels)


@pytest.mark.parametrize(
    "text",
    [
        '{"n":9007199254740993}',
        f'{{"n":{"9" * 4300}}}',
        '{"n":-0}',
        '{"n":1,"x":1e308}',
        '{"n":1,"x":[1.50,2E+3,-0.0,1e-400]}',
        '{"":"","n":1}',
        '{"n":1,"x":"\\u0000\\u001b[2J"}',
        '{"n":1,"x":"\u202e😀 \ufeff"}',
        '{"\'; DROP TABLE flow_runs; --":"\'; DROP TABLE flow_runs; --","n":1}',
        '{"n":1,"x":' + "[" * 98 + "[]" + "]" * 98 + "}",
        '{"n":1,"x":[null,true,false,"null",{}]}',
        f'{{"n":1,"x":"{"é" * ((limits.PARAMETERS_BYTES_MAX - 14) // 2)}"}}',
    ],
    ids=range(12),
)
async def test_odd_parameters_are_kept_faithfully(database: Database, text: str) -> None:
    """Every digit and every character, up to the limits of size, depth and digits."""
    async with serving(database) as process:
        flow = await a_flow(process, accepts_extra_parameters=True)
        run = await create(process, flow, parameters_json=text, context_json=text)

    assert text == run.parameters_json == run.context_json
