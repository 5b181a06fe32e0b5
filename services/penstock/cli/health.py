"""Whether services answer, as gRPC's standard health check says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.runtime.channel import open_channel
from penstock.runtime.clock import SystemClock

PROBE_SECONDS_MAX = 3.0

# What each process serves, so that one of them at another's address is not taken for it. The keeper serves no calls.
SERVED: Final[Mapping[str, str]] = {
    "flow_run": "flowrun.v1.FlowRunService",
    "queue": "flowrun.v1.QueueService",
    "log": "flowrun.v1.LogService",
    "keeper": "",
}


_SAID: Final = {grpc.StatusCode.UNAVAILABLE: "no answer", grpc.StatusCode.NOT_FOUND: "another service answers"}


@dataclass(frozen=True, slots=True)
class Health:
    """What a probe found. `detail` says in a word why a service is not serving; the latency is of that probe."""

    serving: bool
    detail: str
    latency_seconds: float | None


async def probe(address: str, served: str = "") -> Health:
    """Ask the process at an address once, as a whole or about one of the services it is to serve."""
    began = SystemClock().monotonic()
    channel = open_channel(address, repeatable=())
    try:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=served), timeout=PROBE_SECONDS_MAX)
    except grpc.RpcError as error:
        return Health(False, _SAID.get(error.code(), error.code().name), None)
    finally:
        await channel.close()
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    detail = "serving" if serving else "not serving"
    return Health(serving, detail, SystemClock().monotonic() - began)
