"""`penstock run`: what its options become."""

import asyncio
import json
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from flowrun.v1 import flow_pb2, flow_run_pb2, log_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from flowrun.v1 import flow_service_pb2 as flow_verbs
from penstock.domain.errors import FlowNotFound, InvalidRequest, KeyReused, Violation
from penstock.domain.lanes import AGENTLESS
from tests.cli.command import penstock, running
from tests.cli.conftest import RunningServer
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run


async def created(services: ScriptedServices, *options: str) -> verbs.CreateFlowRunRequest:
    """The creation that `penstock run --name river options…` asks for."""
    shown = await penstock("run", "--name", "river", *options, PENSTOCK_ADDRESS=services.address)
    assert 0 == shown.code, shown.err
    creation = services.requests[-1]
    assert isinstance(creation, verbs.CreateFlowRunRequest)
    return creation


async def test_a_run_is_created_as_asked(river: ScriptedServices, tmp_path: Path) -> None:
    """Options reach the server: parameters from file and command line, context, labels, name and key."""
    (tmp_path / "p.json").write_text('{"a": 1, "b": 2}')

    shown = await penstock(
        *("run", "--name", "river", "--project", "water", "--param", "b=3", "--param", "city=Bern"),
        *("--param", "a param with space=2"),
        *("--param-file", str(tmp_path / "p.json"), "--context", "why=test", "--label", "x", "--label", "y"),
        *("--run-name", "first", "--idempotency-key", "once", "--refuse-different"),
        PENSTOCK_ADDRESS=river.address,
    )

    lookup, creation = river.requests
    assert flow_verbs.FlowName(name="river", project_name="water") == lookup.name
    assert {"a": 1, "b": 3, "city": "Bern", "a param with space": 2} == json.loads(creation.parameters_json)
    assert {"why": "test"} == json.loads(creation.context_json)
    assert ["x", "y"] == list(creation.labels.labels)
    assert ("first", "once", "group") == (creation.name, creation.idempotency_key, creation.flow_group_id)
    assert verbs.KEY_REUSE_REFUSE_IF_DIFFERENT == creation.key_reuse
    assert 0 == shown.code
    assert f"Created flow run quiet-otter of flow river.\n  id         {RUN_ID}\n" in shown.out
    assert "penstock: --param goes before --param-file for: b\n" == shown.err


async def test_a_run_is_treated_as_asked(river: ScriptedServices) -> None:
    """The policy is sent as far as it was given, the level in any case of letters."""
    creation = await created(
        river, *("--priority", "7", "--retries", "0", "--retry-delay", "1m30s", "--log-level", "warning")
    )

    policy = creation.policy
    assert (7, 0, timedelta(seconds=90)) == (policy.priority, policy.max_retries, policy.retry_delay.ToTimedelta())
    assert log_pb2.LOG_LEVEL_WARNING == policy.log_level
    assert flow_run_pb2.CHILD_POLICY_UNSPECIFIED == policy.child_policy


async def test_a_bare_run_asks_for_nothing(river: ScriptedServices) -> None:
    """What is not said is left to the group and the flow."""
    creation = await created(river)

    assert {"flow_group_id", "request_id", "policy", "parameters_json", "context_json", "key_reuse"} == {
        field.name for field, _ in creation.ListFields()
    }
    assert flow_run_pb2.FlowRunPolicy() == creation.policy
    assert ("{}", "{}") == (creation.parameters_json, creation.context_json)


async def test_no_labels_is_said_and_not_left_out(river: ScriptedServices) -> None:
    """An explicitly empty list of labels is sent as one."""
    creation = await created(river, "--no-labels")

    assert creation.HasField("labels")
    assert [] == list(creation.labels.labels)


async def test_a_run_config_is_given_whole(river: ScriptedServices) -> None:
    """Variables, directory, image and resources make one run config; values are text, whatever they look like."""
    creation = await created(
        river,
        *("--env", "A=1", "--env", "B=x=y", "--env", "C="),
        *("--working-directory", "/srv", "--image", "busybox:1", "--resource", "memory=1Gi"),
    )

    expected = flow_run_pb2.RunConfig(
        environment={"A": "1", "B": "x=y", "C": ""},
        working_directory="/srv",
        image="busybox:1",
        resources={"memory": "1Gi"},
    )
    assert expected == creation.run_config


async def test_a_span_is_left_to_the_servers_clock(river: ScriptedServices) -> None:
    """--in is sent as a span, so that this machine's clock has no say."""
    creation = await created(river, "--in", "10m")

    assert timedelta(minutes=10) == creation.start_delay.ToTimedelta()
    assert not creation.HasField("scheduled_start_time")


async def test_a_moment_is_sent_in_utc_and_shown_in_local_time(river: ScriptedServices) -> None:
    """--start-at is sent as the moment it is, and the summary tells the local time at which the run starts."""
    run = a_flow_run()
    run.scheduled_start_time.FromJsonString("2126-11-22T09:00:00Z")
    river.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=run, created=True)

    shown = await penstock(
        *("run", "--name", "river", "--start-at", "2126-11-22T10:00+01:00"),
        PENSTOCK_ADDRESS=river.address,
        TZ="Asia/Kolkata",
    )

    assert "2126-11-22T09:00:00Z" == river.requests[-1].scheduled_start_time.ToJsonString()
    assert "  starts at  2126-11-22 14:30:00 +05:30\n" in shown.out


async def test_a_past_moment_means_now_and_that_is_said(river: ScriptedServices) -> None:
    """Whoever gives a moment that is past learns that the run starts at once."""
    shown = await penstock(
        *("run", "--name", "river", "--start-at", "2001-01-01T00:00Z"), PENSTOCK_ADDRESS=river.address, TZ="UTC"
    )

    assert "  starts at  once, for 2001-01-01 00:00:00 +00:00 is past\n" in shown.out


@pytest.mark.parametrize(("given", "target"), [("flow", "flow_id"), ("group", "flow_group_id")])
async def test_an_id_may_be_a_flow_or_a_group(given: str, target: str, river: ScriptedServices) -> None:
    """The id of a flow runs that version, the id of a group whichever is live."""
    await penstock("run", "-i", given, PENSTOCK_ADDRESS=river.address)

    assert target == river.requests[-1].WhichOneof("target")


async def test_quiet_prints_the_id_alone(river: ScriptedServices) -> None:
    """A script gets the run's id and nothing else."""
    shown = await penstock("run", "-n", "river", "--quiet", PENSTOCK_ADDRESS=river.address)

    assert (0, f"{RUN_ID}\n", "") == (shown.code, shown.out, shown.err)


async def test_json_prints_the_run(river: ScriptedServices) -> None:
    """A program gets the run as one document."""
    shown = await penstock("run", "--name", "river", "--json", PENSTOCK_ADDRESS=river.address)

    document = json.loads(shown.out)
    assert (RUN_ID, True, "SCHEDULED") == (document["flow_run_id"], document["created"], document["state"])
    assert 123456789012345678901234567890 == document["parameters"]["big"]


async def test_a_repeat_is_said_to_be_one(river: ScriptedServices) -> None:
    """Who asks again under a key sees the first run, and in what the two differ."""
    answer = verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=False, differing_fields=["parameters"])
    river.scripts["CreateFlowRun"] = lambda *_: answer

    shown = await penstock("run", "--name", "river", "--idempotency-key", "k", PENSTOCK_ADDRESS=river.address)

    assert "This idempotency key had already created flow run quiet-otter of flow river.\n" in shown.out
    assert "  differs in parameters\n" in shown.out


async def test_a_repeat_that_differs_is_said_to_scripts_too(river: ScriptedServices) -> None:
    """Where only the id is printed, in what the first run differs goes to standard error."""
    answer = verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=False, differing_fields=["parameters"])
    river.scripts["CreateFlowRun"] = lambda *_: answer

    shown = await penstock(
        *("run", "--name", "river", "--idempotency-key", "k", "--quiet"), PENSTOCK_ADDRESS=river.address
    )

    assert (0, f"{RUN_ID}\n") == (shown.code, shown.out)
    assert "penstock: This flow run was created before, and differs in: parameters\n" == shown.err


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--id", "x", "--name", "y"],
        ["--name", "x", "--param", "a={b"],
        ["--name", "x", "--param", "a"],
        ["--name", "x", "--param-file", "nothing.json"],
        ["--name", "x", "--env", "A"],
        ["--name", "x", "--in", "soon"],
        ["--name", "x", "--start-at", "soon"],
        ["--name", "x", "--retry-delay", "10"],
        ["--batch", "nothing.jsonl"],
        ["--batch", "-", "--resume", "no id"],
    ],
    ids=" ".join,
)
async def test_misuse_is_refused_before_any_call(options: list[str], river: ScriptedServices) -> None:
    """A command line that cannot be meant is refused with exit code 2, and nothing is created."""
    refused = await penstock("run", *options, PENSTOCK_ADDRESS=river.address)

    assert (2, "") == (refused.code, refused.out)
    assert refused.err.startswith("penstock: ")
    assert not river.requests


async def test_a_refusal_is_the_servers_sentence(services: ScriptedServices) -> None:
    """What the server refuses is shown in its own words, with exit code 1."""

    def refuse(*_: object) -> None:
        raise FlowNotFound("'river'")

    services.scripts["LookUpFlow"] = refuse

    refused = await penstock("run", "--name", "river", PENSTOCK_ADDRESS=services.address)

    assert (1, "", "penstock: There is no flow 'river'.\n") == (refused.code, refused.out, refused.err)


async def test_a_reused_key_can_be_refused(river: ScriptedServices) -> None:
    """Who prefers a refusal to another run than was asked for gets one, with the id of that run."""

    def refuse(*_: object) -> None:
        raise KeyReused("k", RUN_ID, ("parameters",))

    river.scripts["CreateFlowRun"] = refuse

    refused = await penstock(
        *("run", "--name", "river", "--idempotency-key", "k", "--refuse-different"), PENSTOCK_ADDRESS=river.address
    )

    assert 1 == refused.code
    assert f"already made flow run {RUN_ID}" in refused.err


async def test_every_violation_is_shown_in_the_words_of_the_command(river: ScriptedServices) -> None:
    """All that is wrong is listed, one per line, called as the user calls it, and safe to show."""
    violations = (
        Violation("parameters_json", "'\x1b[2Jx' is required"),
        Violation("context_json", "is 600000 bytes; at most 524288 are allowed"),
        Violation("labels.labels[3]", "is only white space"),
        Violation("name", "is 300 characters; at most 255 are allowed"),
        Violation("idempotency_key", "is only white space"),
        Violation("policy.retry_delay", "is 5000000 s; at most 2592000 s are allowed"),
        Violation("run_config.environment['a=b']", "is not the name of a variable"),
        Violation("start_delay", "is too long"),
    )

    def refuse(*_: object) -> None:
        raise InvalidRequest(violations)

    river.scripts["CreateFlowRun"] = refuse

    refused = await penstock("run", "--name", "river", PENSTOCK_ADDRESS=river.address)

    assert 1 == refused.code
    assert [
        "penstock: The request is invalid:",
        r"  --param/--param-file: '\x1b[2Jx' is required",
        "  --context: is 600000 bytes; at most 524288 are allowed",
        "  --label (no. 4): is only white space",
        "  --run-name: is 300 characters; at most 255 are allowed",
        "  --idempotency-key: is only white space",
        "  --retry-delay: is 5000000 s; at most 2592000 s are allowed",
        "  --env['a=b']: is not the name of a variable",
        "  --in: is too long",
    ] == refused.err.splitlines()


async def test_a_wrong_id_is_repeated(services: ScriptedServices) -> None:
    """Who mistypes an id sees what was taken for one."""

    def refuse(*_: object) -> None:
        raise InvalidRequest((Violation("id", "is not a UUID"),))

    services.scripts["LookUpFlow"] = refuse

    refused = await penstock("run", "--id", "wrong", PENSTOCK_ADDRESS=services.address)

    assert "penstock: The request is invalid: --id 'wrong': is not a UUID\n" == refused.err


async def test_text_that_looks_like_json_gets_a_hint(river: ScriptedServices) -> None:
    """A number given for a text is refused with how to give it as text; other parameters get no such hint."""
    station = flow_pb2.Parameter(name="the station", type=flow_pb2.PARAMETER_TYPE_STRING)
    other = flow_pb2.Parameter(name="n", type=flow_pb2.PARAMETER_TYPE_INTEGER)
    flow = flow_pb2.Flow(flow_id="flow", flow_group_id="group", name="river", parameters=[station, other])

    def refuse(*_: object) -> None:
        raise InvalidRequest((Violation("parameters_json", "'the station' must be of type string"),))

    river.scripts |= {
        "LookUpFlow": lambda *_: flow_verbs.LookUpFlowResponse(flow=flow),
        "CreateFlowRun": refuse,
    }

    refused = await penstock(
        *("run", "--name", "river", "--param", "the station=5", "--param", "n=1.5"), PENSTOCK_ADDRESS=river.address
    )

    assert [
        "penstock: The request is invalid: --param/--param-file: 'the station' must be of type string",
        """To give 'the station' as text, quote it twice: --param 'the station'='"5"'""",
    ] == refused.err.splitlines()


@pytest.mark.parametrize(
    ("options", "words"),
    [([], "with --idempotency-key, a command may simply be repeated"), (["--idempotency-key", "k"], "makes no second")],
    ids=["without a key", "with a key"],
)
async def test_an_answer_that_never_came(options: list[str], words: str, river: ScriptedServices) -> None:
    """Without an answer nobody knows whether there is a run, and that is said, with what to do."""

    async def wait(_: object, context: Any) -> None:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "too late")

    river.scripts["CreateFlowRun"] = wait

    refused = await penstock("run", "--name", "river", *options, PENSTOCK_ADDRESS=river.address)

    assert 1 == refused.code
    assert "The run may have been created all the same." in refused.err
    assert words in refused.err


async def test_ctrl_c_before_the_answer(river: ScriptedServices) -> None:
    """Who interrupts a creation is told that there may be a run."""
    reached = asyncio.Event()

    async def wait(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    river.scripts["CreateFlowRun"] = wait
    async with running("run", "--name", "river", PENSTOCK_ADDRESS=river.address) as process:
        async with asyncio.timeout(30):
            await reached.wait()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()

    assert (130, b"") == (process.returncode, out)
    assert "The run may have been created all the same." in err.decode()
    assert "Traceback" not in err.decode()


@pytest.mark.parametrize(
    ("options", "group_labels", "labels"),
    [
        ([], None, ["of the flow", AGENTLESS]),
        ([], ["of the group"], ["of the group", AGENTLESS]),
        ([], [], [AGENTLESS]),
        (["--label", "given"], ["of the group"], ["given", AGENTLESS]),
        (["--no-labels"], ["of the group"], [AGENTLESS]),
    ],
    ids=["flow", "group", "empty group", "given", "none"],
)
async def test_a_run_for_this_process_keeps_its_labels(
    options: list[str], group_labels: list[str] | None, labels: list[str], river: ScriptedServices
) -> None:
    """--execute adds the reserved label to those that the run would have anyway."""
    flow = flow_pb2.Flow(flow_id="flow", flow_group_id="group", name="river", labels=["of the flow"])
    group = flow_pb2.FlowGroup(flow_group_id="group")
    if group_labels is not None:
        group.labels.CopyFrom(flow_run_pb2.Labels(labels=group_labels))
    river.scripts |= {
        "LookUpFlow": lambda *_: flow_verbs.LookUpFlowResponse(flow=flow),
        "GetFlowGroup": lambda *_: flow_verbs.GetFlowGroupResponse(flow_group=group),
    }

    # A run that was made for agents is answered, so nothing is executed.
    refused = await penstock("run", "--name", "river", "--execute", *options, PENSTOCK_ADDRESS=river.address)

    creation = river.requests[-1]
    assert labels == list(creation.labels.labels)
    assert 1 == refused.code
    assert f"had already created flow run {RUN_ID}, for an agent to execute" in refused.err


async def test_a_key_gives_the_same_run_twice(server: RunningServer) -> None:
    """The same command twice, with a key, prints the same id: on a real installation."""
    registered = await penstock(
        *("register", "penstock.examples.hello_world", "--project", "examples"), **server.variables
    )
    assert 0 == registered.code, registered.err
    command = ("run", "--name", "hello-world", "--param", "name=Marvin", "--idempotency-key", "k", "--quiet")

    first, second = await penstock(*command, **server.variables), await penstock(*command, **server.variables)

    assert (0, 0) == (first.code, second.code), first.err + second.err
    assert 36 == len(first.out.strip())
    assert first.out == second.out
