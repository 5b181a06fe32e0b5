"""Runs the client in Node, and README's example, against real services: `python -m tests.polyglot`.

Needs `node` and `npm`, and installs the two packages of gRPC for Node into a temporary folder. It is no part of the
tests that pytest collects, which need nothing but Python.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from flowrun.v1.flow_pb2 import EntryPoint, Flow, Parameter
from flowrun.v1.flow_run_pb2 import FlowRun
from flowrun.v1.flow_run_service_pb2 import GetFlowRunRequest
from flowrun.v1.flow_run_service_pb2_grpc import FlowRunServiceStub
from flowrun.v1.flow_service_pb2 import RegisterFlowRequest
from flowrun.v1.flow_service_pb2_grpc import FlowServiceStub
from penstock.runtime.channel import open_sync_channel
from tests.polyglot.services import Service, flow_run_service

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
COMMAND_SECONDS_MAX: Final = 180
# Nothing is run that a package brings along, and nothing is written but the packages.
NPM_INSTALL: Final = ("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock")


def main() -> int:
    """Do it all, say what was done, and return the exit code."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            print(f"tests.polyglot: {program} is not installed; nothing was tested.", file=sys.stderr)
            return 1
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        client = _installed_client(directory)
        with flow_run_service(directory / "guarded", token="polyglot") as service:
            flow = _registered_flow(service)
            seen = _seen_by(client, service, flow)
        with flow_run_service(directory / "open", token="") as service:
            created = _created_by_readme(client, service)
    _check(seen, flow)
    print(f"Node created {seen['by_flow']['read']['name']} by flow_id and read it back.")
    print(f"Node created {seen['by_flow_group']['read']['name']} by flow_group_id, read it back and did so only once.")
    for case in ("refused", "violated", "uncredentialed"):
        print(f"Node was refused: {seen[case]['code']} / {seen[case]['reason']}: {seen[case]['message']}")
    print(f"README's example created {created.name} with {created.parameters_json}.")
    return 0


def _installed_client(directory: Path) -> Path:
    """A copy of the client with its packages beside it, outside the tree."""
    client = directory / "node"
    shutil.copytree(HERE / "node", client)
    environ = {**os.environ, "npm_config_cache": str(directory / "npm"), "npm_config_update_notifier": "false"}
    subprocess.run(NPM_INSTALL, cwd=client, env=environ, check=True, timeout=COMMAND_SECONDS_MAX)
    return client


def _registered_flow(service: Service) -> Flow:
    request = RegisterFlowRequest(
        project_name="polyglot",
        name="any-language",
        entry_point=EntryPoint(python="flows.py:any_language"),
        parameters=[Parameter(name="number", default_json="1"), Parameter(name="share", default_json="0.50")],
    )
    with open_sync_channel(service.address, token=service.token) as channel:
        return FlowServiceStub(channel).RegisterFlow(request).flow


def _seen_by(client: Path, service: Service, flow: Flow) -> Any:
    """What the client printed."""
    done = subprocess.run(
        ["node", "client.js", str(ROOT / "protos"), service.address, flow.flow_id, flow.flow_group_id],
        cwd=client,
        env={**os.environ, "PENSTOCK_TOKEN": service.token},
        stdout=subprocess.PIPE,
        check=True,
        timeout=COMMAND_SECONDS_MAX,
    )
    return json.loads(done.stdout)


def _created_by_readme(client: Path, service: Service) -> FlowRun:
    """The run that README's example in Node makes of README's flow, as it is found afterwards."""
    (example,) = re.findall(r"^```javascript\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (client / "readme.js").write_text(example)
    request = RegisterFlowRequest(
        project_name="coast",
        name="tide",
        entry_point=EntryPoint(python="tide.py:tide"),
        parameters=[Parameter(name="station", required=True), Parameter(name="readings", default_json="3")],
    )
    with open_sync_channel(service.address) as channel:
        FlowServiceStub(channel).RegisterFlow(request)
        # From the root of the tree, as README's reader does.
        done = subprocess.run(
            ["node", str(client / "readme.js")],
            cwd=ROOT,
            env={**os.environ, "PENSTOCK_FLOW_RUN_ADDRESS": service.address},
            stdout=subprocess.PIPE,
            check=True,
            timeout=COMMAND_SECONDS_MAX,
        )
        flow_run_id = done.stdout.decode().split()[0]
        run = FlowRunServiceStub(channel).GetFlowRun(GetFlowRunRequest(flow_run_id=flow_run_id)).flow_run
    expected = {"station": "lock", "readings": 3}
    assert expected == json.loads(run.parameters_json)
    return run


def _check(seen: Any, flow: Flow) -> None:
    for case in ("by_flow", "by_flow_group"):
        created, read = seen[case]["created"], seen[case]["read"]
        assert created == read, f"{case}: what was read is not what was created: {created} {read}"
        expected = (flow.flow_id, flow.flow_group_id, "FLOW_RUN_STATE_SCHEDULED")
        assert expected == (read["flow_id"], read["flow_group_id"], read["state"])
    by_flow, by_flow_group = seen["by_flow"]["read"], seen["by_flow_group"]["read"]
    _check_texts(by_flow, by_flow_group)
    repeated = seen["repeated"]
    expected_repeat = (by_flow_group["flow_run_id"], False)
    assert expected_repeat == (repeated["flow_run"]["flow_run_id"], repeated.get("created", False))
    expected_refusals = {
        "refused": ("NOT_FOUND", "FLOW_NOT_FOUND"),
        "violated": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
        "uncredentialed": ("UNAUTHENTICATED", "CREDENTIAL_INVALID"),
    }
    assert expected_refusals == {case: (seen[case]["code"], seen[case]["reason"]) for case in expected_refusals}


def _check_texts(by_flow: Any, by_flow_group: Any) -> None:
    # Numbers keep their digits, whichever language they come from.
    expected_parameters = ['{"number":12345678901234567890,"share":2.0}', '{"number":1,"share":0.50}']
    assert expected_parameters == [run["parameters_json"].replace(" ", "") for run in (by_flow, by_flow_group)]
    expected_names = ("made-in-node", "from-node")
    assert expected_names == (by_flow["name"], by_flow_group["idempotency_key"])


if __name__ == "__main__":
    sys.exit(main())
