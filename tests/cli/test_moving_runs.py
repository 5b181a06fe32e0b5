"""Cancel, restart, explain, describe, delete and archive, together, with the real services."""

import json

from tests.cli.command import Finished, penstock
from tests.cli.conftest import RunningServer


async def test_a_run_is_moved_by_commands_alone(server: RunningServer) -> None:
    """What each command says fits what the others then see, from the creation of a run to its deletion."""

    async def ask(*args: str) -> Finished:
        return await penstock(*args, **server.variables)

    await ask("register", "--command", "true", "--name", "calm", "--project", "water", "--label", "lake")
    created = json.loads((await ask("run", "--name", "calm", "--run-name", "tide", "--param", "n=1", "--json")).out)
    run_id = created["flow_run_id"]

    waits = await ask("explain", "tide")
    assert (0, "No agent is connected; it needs one that bears 'lake'.\n") == (waits.code, waits.out)
    refused = await ask("restart", "tide")
    assert (1, True) == (refused.code, "is SCHEDULED; wait for its end, or cancel it first." in refused.err)
    assert 1 == (await ask("delete", "flow-run", "tide", "--yes")).code

    assert "Flow run tide is cancelled.\n" == (await ask("cancel", "tide", "--reason", "dry")).out
    assert "Flow run tide had ended already: CANCELLED.\n" == (await ask("cancel", run_id, "--wait")).out

    again = await ask("restart", run_id, "--in", "1h", "--reason", "rain")
    assert "Flow run tide is SCHEDULED again, as attempt 2." == again.out.splitlines()[0]
    obstacles = json.loads((await ask("explain", run_id, "--json")).out)["obstacles"]
    assert "NOT_DUE" in [each["kind"] for each in obstacles]
    assert 0 == (await ask("cancel", run_id)).code

    described = json.loads((await ask("describe", "flow-run", "tide", "--json")).out)
    assert [("CREATED", 1), ("CANCEL_ASKED", 1), ("RESTARTED", 2), ("CANCEL_ASKED", 2)] == [
        (step["cause"], step["attempt"]) for step in described["transitions"]
    ]
    assert ("dry", "rain") == tuple(described["transitions"][place]["message"] for place in (1, 2))
    assert ("calm", {"n": 1}) == (described["flow"]["name"], described["flow_run"]["parameters"])

    assert "Flow run tide is deleted.\n" == (await ask("delete", "flow-run", "tide", "--yes")).out
    assert (1, f"penstock: There is no flow run {run_id}.\n") == (
        (gone := await ask("get", "flow-run", run_id)).code,
        gone.err,
    )


async def test_versions_of_a_flow_are_moved_by_commands_alone(server: RunningServer) -> None:
    """An archived flow makes no run until a version of it is live again."""

    async def ask(*args: str) -> Finished:
        return await penstock(*args, **server.variables)

    for program in ("true", "false"):
        await ask("register", "--command", program, "--name", "calm", "--project", "water")

    assert "Version 2 of flow calm in project water is archived" in (await ask("archive", "calm")).out
    refused = await ask("run", "--name", "calm")
    assert (1, True) == (refused.code, "has no unarchived flow" in refused.err)
    described = json.loads((await ask("describe", "flow", "calm", "--json")).out)
    assert [2, 1] == [each["version"] for each in described["versions"]]
    assert all(each["archive_time"] for each in described["versions"])

    assert "Version 2 of flow calm in project water is the live one.\n" == (await ask("unarchive", "calm")).out
    first = described["versions"][1]["flow_id"]
    back = await ask("unarchive", first)
    assert "Version 1 of flow calm in project water is the live one; version 2 is archived instead.\n" == back.out
    assert first == json.loads((await ask("run", "--name", "calm", "--json")).out)["flow_id"]
    assert "water" == (await ask("get", "projects")).out.splitlines()[1].split()[1]
