"""The command as a whole."""

import asyncio
import sys
from importlib.metadata import version

import pytest

from tests.cli.command import environment, penstock

COMMANDS = [
    ["quickstart"],
    ["server", "start"],
    ["server", "status"],
    ["agent", "start"],
    ["register"],
    ["run"],
    ["get", "flows"],
    ["get", "flow-runs"],
    ["get", "agents"],
    ["logs"],
]


async def test_help_is_quick() -> None:
    """Help imports nothing that takes long: no gRPC, no client, no tables, no database."""
    code = (
        "import os, sys\nfrom penstock.cli.main import main\nsys.argv = ['penstock', '--help']\n"
        "os._exit = lambda code: None\nmain()\n"
        "print(sorted(set(sys.modules) & {'grpc', 'rich', 'pendulum', 'sqlalchemy', 'asyncio', 'opentelemetry',"
        " 'google.protobuf', 'penstock.client', 'penstock.agent', 'penstock.runtime.settings'}))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env=environment()
    )
    out, _ = await process.communicate()

    assert "[]" == out.decode().splitlines()[-1]


async def test_help_names_every_command_and_exit_code() -> None:
    """Help shows what there is, where services are looked for, and what exit codes mean."""
    shown = await penstock("--help")

    assert 0 == shown.code
    for words in ("quickstart", "server", "agent", "register", "run", "get", "logs", "PENSTOCK_ADDRESS", "Exit codes"):
        assert words in shown.out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_each_command_explains_itself(command: list[str]) -> None:
    """Every command has help, and every option in it is explained."""
    shown = await penstock(*command, "--help")

    assert 0 == shown.code
    assert f"Usage: penstock {' '.join(command)}" in shown.out
    options = [line for line in shown.out.splitlines() if line.startswith("  -")]
    assert all(len(line.split("  ", 2)) == 3 or len(line) > 28 for line in options)


async def test_version() -> None:
    """The version is the package's."""
    assert f"penstock {version('penstock')}\n" == (await penstock("--version")).out


async def test_a_shell_can_complete() -> None:
    """The shell's completion proposes the commands."""
    proposed = await penstock(_PENSTOCK_COMPLETE="complete_bash", COMP_WORDS="penstock re", COMP_CWORD="1")

    assert ["register", "restart"] == proposed.out.split()


async def test_a_wrong_option_is_misuse() -> None:
    """An option that does not exist is refused on stderr with exit code 2."""
    refused = await penstock("get", "flows", "--bogus")

    assert (2, "") == (refused.code, refused.out)
    assert "No such option: --bogus" in refused.err


@pytest.mark.parametrize("command", [["get", "flows"], ["logs", "x"], ["run", "--name", "x"]], ids=" ".join)
async def test_without_a_server_the_remedy_is_named(command: list[str], unused_tcp_port: int) -> None:
    """When no server answers, the user is told where it was looked for and how to start one."""
    failed = await penstock(*command, PENSTOCK_ADDRESS=f"127.0.0.1:{unused_tcp_port}")

    expected = f"No Penstock server answers at 127.0.0.1:{unused_tcp_port}. Start one with: penstock server start"
    assert (1, "", f"penstock: {expected}\n") == (failed.code, failed.out, failed.err)


async def test_a_wrong_setting_is_misuse() -> None:
    """A setting that cannot be used is named, with exit code 2."""
    failed = await penstock("get", "flows", PENSTOCK_TIMEOUT="soon")

    assert 2 == failed.code
    assert "PENSTOCK_TIMEOUT must be a number of seconds" in failed.err


async def test_a_terminal_without_the_characters_is_served(unused_tcp_port: int) -> None:
    """Output that the terminal's encoding lacks is shown as escapes, and the command goes on."""
    shown = await penstock(
        "run", "--name", "é", PYTHONIOENCODING="ascii", PENSTOCK_ADDRESS=f"127.0.0.1:{unused_tcp_port}"
    )

    assert 1 == shown.code
    assert "No Penstock server answers" in shown.err


async def test_bytes_that_are_no_text_are_misuse() -> None:
    """An argument that no request could carry is refused in one line, before any call."""
    failed = await penstock("run", "--name", "tide", "--run-name", "\udcff")

    assert (2, "penstock: Argument 5 is not valid UTF-8: '\\udcff'\n") == (failed.code, failed.err)
