"""Penstock: the control plane that creates, queues, dispatches, watches and logs flow runs.

The public names are loaded when they are first asked for, so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.authoring.flow import flow as flow
    from penstock.authoring.run import current_flow_run as current_flow_run
    from penstock.authoring.run import get_logger as get_logger
    from penstock.client import AsyncClient as AsyncClient
    from penstock.client import Client as Client

    __version__: str

_HOMES = {
    "flow": "penstock.authoring.flow",
    "current_flow_run": "penstock.authoring.run",
    "get_logger": "penstock.authoring.run",
    "Client": "penstock.client",
    "AsyncClient": "penstock.client",
}

__all__ = ["AsyncClient", "Client", "current_flow_run", "flow", "get_logger"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("penstock")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})
