"""Answering for a supervisor that was killed: it can report nothing any more, and its body ends with it."""

import asyncio
import os
import time
from typing import Final

from google.protobuf import json_format

from penstock.agent.ending import Finish, failure, how_it_ended
from penstock.agent.run_directory import RunDirectory

# How long the group of a body may take to be gone, which is killed with its supervisor.
GONE_SECONDS_MAX: Final = 5.0
_GLANCE_SECONDS: Final = 0.01


async def can_be_reported(directory: RunDirectory, code: int) -> bool:
    """Whether it is recorded, now or before, how the run of a killed supervisor ended.

    Only the execution that was started may end its lease, and only once nothing is left of the process group of its
    body: a successor could begin at once. What the code moved to a group of its own is not looked for, here as little
    as when a lease ends.
    """
    if directory.recorded_exit() is not None:
        return True
    start = directory.recorded_start()
    if start is None or not await _is_gone(start.body):
        return False
    assignment = directory.assignment()
    request = Finish(
        flow_run_id=assignment.flow_run_id,
        fence=assignment.fence,
        execution_id=start.execution_id,
        failed=failure(f"{how_it_ended(code, 'The supervisor of the run')} The code of the run was ended with it."),
    )
    directory.record_exit(json_format.MessageToJson(request))
    return True


async def _is_gone(group: int) -> bool:
    """Whether nothing is left of a process group."""
    deadline = time.monotonic() + GONE_SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        await asyncio.sleep(_GLANCE_SECONDS)
    return False
