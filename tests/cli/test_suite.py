"""The services as child processes."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.cli.suite import Child, Place, Suite, SuiteFailed, free_ports
from tests.cli.command import ROOT, environment


async def child_running(code: str, tmp_path: Path, say: Callable[[str], None]) -> Child:
    """A child that runs this code."""
    (tmp_path / "module_of_test.py").write_text(code)
    environ = environment()
    environ["PYTHONPATH"] += f":{tmp_path}"
    return await Child.start("tested", "module_of_test", "argument", environ=environ, say=lambda _, line: say(line))


async def test_a_childs_output_is_shown_whole(tmp_path: Path) -> None:
    """Every line of both streams is shown: without an end, not in UTF-8, or longer than any buffer."""
    said: list[str] = []
    code = (
        "import sys\nprint(sys.argv[1:])\nsys.stdout.buffer.write(b'caf\\xe9\\n'); sys.stdout.flush()\n"
        "print('x' * 200_000, file=sys.stderr, flush=True)\nprint('last', end='')\nsys.exit(3)\n"
    )
    child = await child_running(code, tmp_path, said.append)

    ended = await child.end()

    assert 3 == ended
    assert ["['argument']", r"caf\xe9"] == said[:2]
    assert "x" * 200_000 + "last" == "".join(said[2:])
    assert child.lines(1) == ("last",)


async def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    """A child that ignores SIGTERM is ended all the same."""
    said_something = asyncio.Event()
    code = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf')\nsignal.pause()\n"
    child = await child_running(code, tmp_path, lambda _: said_something.set())
    await said_something.wait()

    await child.stop(seconds_max=0.2)

    assert -9 == await child.end()


async def test_a_service_that_fails_to_start_says_why(tmp_path: Path) -> None:
    """When a service ends as it starts, the failure bears the service's own words."""
    (tmp_path / "penstock.toml").write_text('[log]\nlog_level = "LOUD"\n')
    environ = environment(PENSTOCK_DATA_DIR=str(tmp_path), PENSTOCK_CONFIG=str(tmp_path / "penstock.toml"))
    place = Place("127.0.0.1", free_ports("127.0.0.1"), f"sqlite:///{tmp_path}/penstock.db", environ)
    suite = Suite(place, say=lambda _name, _line: None)

    with pytest.raises(SuiteFailed, match=r"The log service ended with exit code 2 as it started:\n.*LOG_LEVEL"):
        await suite.start()

    await suite.stop()


async def test_a_place_tells_clients_where_it_is() -> None:
    """Services that listen to the world are reached at this machine's own address."""
    place = Place("0.0.0.0", {"flow_run": 1, "queue": 2, "log": 3, "keeper": 4}, "", {})

    assert {
        "PENSTOCK_FLOW_RUN_ADDRESS": "127.0.0.1:1",
        "PENSTOCK_QUEUE_ADDRESS": "127.0.0.1:2",
        "PENSTOCK_LOG_ADDRESS": "127.0.0.1:3",
        "PENSTOCK_KEEPER_ADDRESS": "127.0.0.1:4",
    } == place.client_environ()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child learns of it from the end of its input")
async def test_a_child_without_its_parent_does_not_begin() -> None:
    """A child whose parent is gone before it could be bound to it ends at once."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "penstock.cli.child", "1", "this"), env=environment(), cwd=ROOT
    )

    assert -9 == await process.wait()


async def test_a_child_is_read_even_when_nobody_can_be_shown_its_lines(tmp_path: Path) -> None:
    """A terminal that is gone must not fill a child's pipe: the child would freeze in its next line."""

    def gone(_line: str) -> None:
        raise BrokenPipeError

    child = await child_running("import sys\nprint(('x' * 1000 + '\\n') * 1000)\nsys.exit(7)\n", tmp_path, gone)

    async with asyncio.timeout(60):
        code = await child.end()

    assert 7 == code
    assert "x" * 1000 in child.lines()
