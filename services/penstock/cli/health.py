"""Whether services answer, as gRPC's standard health check says."""

from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.runtime.channel import open_channel
from penstock.runtime.clock import SystemClock

PROBE_SECONDS_MAX = 3.0


@dataclass(frozen=True, slots=True)
class Health:
    """What a probe found. `detail` says in a word why a service is not serving; the latency is of that probe."""

    serving: bool
    detail: str
    latency_seconds: float | None


async def probe(address: str) -> Health:
    """Ask the service at an address once."""
    began = SystemClock().monotonic()
    channel = open_channel(address, repeatable=())
    try:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS_MAX)
    except grpc.RpcError as error:
        answers = error.code() is not grpc.StatusCode.UNAVAILABLE
        return Health(False, error.code().name if answers else "no answer", None)
    finally:
        await channel.close()
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    detail = "serving" if serving else "not serving"
    return Health(serving, detail, SystemClock().monotonic() - began)
