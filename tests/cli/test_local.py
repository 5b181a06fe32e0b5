"""`penstock run --path` and `--module`: real processes, and no server anywhere."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.cli.command import environment, line_with, penstock, running
from tests.cli.terminal import CTRL_C, at_a_terminal

# No server, nor an address that could be one: whoever asks for either fails.
NOWHERE = {"PENSTOCK_ADDRESS": "nowhere.invalid:1"}

TIDE = """
from penstock import flow, get_logger

@flow
def tide(name: str, times: int = 2):
    print("hello", name)
    get_logger().info("%d\\ntimes", times)
    return {"times": times, "big": 2**60 + 1}
"""


def written(directory: Path, code: str, name: str = "flow.py") -> str:
    """A file with this code."""
    (directory / name).write_text(code)
    return str(directory / name)


async def test_a_run_is_shown_from_its_begin_to_its_end(tmp_path: Path) -> None:
    """Prints go through as they are, log lines have time and level, and the result is JSON."""
    path = written(tmp_path, TIDE)

    ran = await penstock("run", "--path", path, "--param", "name=Marvin", "--param", "times=3", **NOWHERE)

    begin, hello, first, second, end, result = ran.out.splitlines()
    assert (0, "") == (ran.code, ran.err)
    assert "Running flow tide locally…" == begin
    assert "hello Marvin" == hello
    assert ["  │ INFO     3", "  │ INFO     times"] == [first[8:], second[8:]]
    assert "Flow run succeeded." == end
    assert 'Result: {"times": 3, "big": 1152921504606846977}' == result


async def test_a_module_is_found_from_here(tmp_path: Path) -> None:
    """--module imports as Python does in this directory."""
    written(tmp_path, TIDE, "river.py")

    ran = await penstock("run", "--module", "river", "--param", "name=M", cwd=tmp_path, **NOWHERE)

    assert 0 == ran.code
    assert "Flow run succeeded." in ran.out


async def test_all_that_is_wrong_with_parameters_is_said_before_anything_runs(tmp_path: Path) -> None:
    """Missing, unknown and mistyped parameters are refused at once, as a server would refuse them."""
    path = written(tmp_path, TIDE)

    refused = await penstock("run", "--path", path, "--param", "nam=Marvin", "--param", "times=soon", **NOWHERE)

    assert (2, "") == (refused.code, refused.out)
    heading, *wrong = refused.err.splitlines()
    assert "penstock: Flow tide cannot be run:" == heading
    assert ["'name'", "'nam'", "'times'"] == [line.split()[0] for line in wrong]


@pytest.mark.parametrize(
    ("code", "options", "exit_code", "message"),
    [
        ("x = 1\n", [], 2, "flow.py defines no flows"),
        (TIDE, ["--name", "ebb"], 2, "flow.py has no flow 'ebb'; it has tide."),
        (
            "from penstock import flow\n@flow\ndef a(): ...\n@flow\ndef b(): ...\n",
            [],
            2,
            "flow.py: a, b; say which with --name.",
        ),
        ("def broken(:\n", [], 1, "cannot be imported: SyntaxError"),
        ("import no_such_module\n", [], 1, "No module named 'no_such_module'"),
        (
            "from penstock import flow\n@flow(retries=-1)\ndef a(): ...\n",
            [],
            1,
            "retries must be a whole number from 0 to 1,000, not -1",
        ),
    ],
    ids=["no flow", "no such flow", "several flows", "syntax", "import", "limits"],
)
async def test_a_file_without_the_flow_is_refused(
    code: str, options: list[str], exit_code: int, message: str, tmp_path: Path
) -> None:
    """What was found, and what to say, is told in one line; the author's own mistake with its place."""
    refused = await penstock("run", "--path", written(tmp_path, code), *options, **NOWHERE)

    assert exit_code == refused.code
    assert message in refused.err
    assert "penstock/" not in refused.out


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path is never taken for a module, with or without its ending."""
    refused = await penstock("run", "--path", "nothing", cwd=tmp_path, **NOWHERE)

    assert (2, f"penstock: No flow was run: there is no file {tmp_path / 'nothing'}\n") == (refused.code, refused.err)


async def test_one_flow_of_several_is_chosen_by_name(tmp_path: Path) -> None:
    """--name says which."""
    path = written(tmp_path, "from penstock import flow\n@flow\ndef a(): ...\n@flow\ndef b(): return 'b'\n")

    ran = await penstock("run", "--path", path, "--name", "b", **NOWHERE)

    assert ["Running flow b locally…", "Flow run succeeded.", 'Result: "b"'] == ran.out.splitlines()


RETRIED = """
import os
from penstock import flow
tries = []

@flow(retries=2, retry_delay={delay})
async def tide():
    tries.append(1)
    print("tries in this process:", len(tries))
    if len(os.listdir({witnesses!r})) < {failures}:
        open(os.path.join({witnesses!r}, str(os.getpid())), "w").close()
        raise ValueError("no water")
"""


@pytest.mark.parametrize(
    ("failures", "code", "last"),
    [(2, 0, "Flow run succeeded."), (3, 1, "Flow run failed: ValueError: no water")],
)
async def test_a_failure_is_tried_again_as_the_flow_says(failures: int, code: int, last: str, tmp_path: Path) -> None:
    """Each attempt is seen, begins in a process of its own after the delay, and the last one decides."""
    (witnesses := tmp_path / "witnesses").mkdir()
    path = written(tmp_path, RETRIED.format(delay=1, witnesses=str(witnesses), failures=failures))

    ran = await penstock("run", "--path", path, **NOWHERE)

    lines = ran.out.splitlines()
    assert (code, last) == (ran.code, lines[-1])
    assert 3 == lines.count("tries in this process: 1")
    assert [
        "Running flow tide locally…",
        "Attempt 1 of 3 failed; the next one begins in 1 s. ValueError: no water",
        "Running flow tide locally, attempt 2…",
        "Attempt 2 of 3 failed; the next one begins in 1 s. ValueError: no water",
        "Running flow tide locally, attempt 3…",
    ] == [line for line in lines if line.startswith(("Running", "Attempt"))]
    first, second, *_ = sorted(file.stat().st_mtime for file in witnesses.iterdir())
    assert 1 <= second - first


async def test_a_failure_shows_the_authors_code_alone(tmp_path: Path) -> None:
    """The traceback begins in the file, and has none of our frames."""
    path = written(tmp_path, "from penstock import flow\n@flow\ndef tide():\n    1 / 0\n")

    ran = await penstock("run", "--path", path, **NOWHERE)

    assert 1 == ran.code
    assert "Flow run failed: ZeroDivisionError: division by zero" == ran.out.splitlines()[-1]
    assert [path] == [line.split('"')[1] for line in ran.out.splitlines() if 'File "' in line]


@pytest.mark.parametrize(
    ("code", "exit_code", "last"),
    [
        ("sys.exit()", 0, "Flow run succeeded."),
        ("sys.exit(3)", 1, "Flow run failed: It exited with code 3."),
        ("os._exit(4)", 1, "Flow run failed: It exited with code 4."),
        ("os.kill(os.getpid(), 9)", 1, "Flow run failed: It was ended by signal 9."),
        ("return object()", 1, "Flow run failed: TypeError: the flow returned what cannot be written as JSON: result"),
        ("raise type('Stop', (BaseException,), {})('now')", 1, "Flow run failed: Stop: now"),
        ("atexit.register(print, 'Flow run put away its things')", 0, "Flow run succeeded."),
    ],
)
async def test_every_way_to_end_is_told(code: str, exit_code: int, last: str, tmp_path: Path) -> None:
    """Leaving the interpreter, being killed, and results that cannot be kept end as they would under an agent."""
    path = written(tmp_path, f"import atexit, os, sys\nfrom penstock import flow\n@flow\ndef tide():\n    {code}\n")

    ran = await penstock("run", "--path", path, **NOWHERE)

    assert exit_code == ran.code
    assert ran.out.splitlines()[-1].startswith(last)
    assert ("atexit" in code) == ("put away" in ran.out)


async def test_quiet_shows_nothing_but_what_the_flow_prints(tmp_path: Path) -> None:
    """Neither log lines nor our own words; why it failed goes to standard error."""
    path = written(
        tmp_path, TIDE + "    \n@flow\ndef dry():\n    get_logger().error('x')\n    raise ValueError('dry')\n"
    )

    wet = await penstock("run", "--path", path, "--name", "tide", "--param", "name=M", "--quiet", **NOWHERE)
    dry = await penstock("run", "--path", path, "--name", "dry", "--quiet", **NOWHERE)

    assert (0, "hello M\n", "") == (wet.code, wet.out, wet.err)
    assert (1, "", "penstock: Flow run failed: ValueError: dry\n") == (dry.code, dry.out, dry.err)


async def test_programs_get_one_document(tmp_path: Path) -> None:
    """With --json standard output holds the end alone; what the flow prints goes to standard error."""
    path = written(tmp_path, TIDE)

    ran = await penstock("run", "--path", path, "--param", "name=M", "--json", **NOWHERE)

    document = json.loads(ran.out)
    assert {"times": 2, "big": 2**60 + 1} == document["result"]
    assert ("tide", "SUCCEEDED", 1, None) == tuple(
        document[name] for name in ("flow_name", "state", "attempt", "failure")
    )
    assert "hello M\n" in ran.err


async def test_the_log_level_is_the_users_then_the_flows(tmp_path: Path) -> None:
    """--log-level goes before what the flow says, which goes before INFO."""
    code = (
        "import logging\nfrom penstock import flow\n@flow(log_level='error')\ndef tide():\n"
        "    logging.getLogger('a').debug('deep')\n    logging.getLogger('a').warning('high')\n"
    )
    path = written(tmp_path, code)

    plain = await penstock("run", "--path", path, **NOWHERE)
    asked = await penstock("run", "--path", path, "--log-level", "debug", **NOWHERE)

    assert "high" not in plain.out
    assert {"deep", "high"} <= set(asked.out.split())


async def test_no_flow_run_is_what_a_local_run_is_in(tmp_path: Path) -> None:
    """A local run inside a flow run is not taken for that run, which would be given children that are not its own."""
    code = "from penstock import current_flow_run, flow\n@flow\ndef tide():\n    current_flow_run()\n"

    ran = await penstock("run", "--path", written(tmp_path, code), PENSTOCK_FLOW_RUN_ID="outer", **NOWHERE)

    assert "NotInFlowRun" in ran.out.splitlines()[-1]


SLOW = """
import time
from penstock import flow

@flow(retries=5)
def tide():
    try:
        print("in")
        time.sleep(60)
    finally:
        print("out")
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_ends_the_flow_with_its_clean_up(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """`finally` blocks are executed, no other attempt begins, and nothing is said as a traceback."""
    async with running("run", "--path", written(tmp_path, SLOW), **NOWHERE) as process:
        await line_with("in", process)
        await line_with("in", process)

        process.send_signal(number)
        out, err = await process.communicate()

    assert code == process.returncode
    assert (b"out\n", b"") == (out, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_while_an_attempt_starts(number: signal.Signals, tmp_path: Path) -> None:
    """Who interrupts the command before the flow was even found is shown no traceback of what was being imported."""
    # Python imports this before anything else of the attempt, and here it takes as long as the test wishes.
    written(
        tmp_path,
        "import sys, time\n"
        "if 'penstock.cli.attempt' in sys.orig_argv:\n"
        "    print('importing', flush=True)\n"
        "    time.sleep(1)\n",
        "sitecustomize.py",
    )
    paths = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    async with running("run", "--path", written(tmp_path, SLOW), PYTHONPATH=paths, **NOWHERE) as process:
        await line_with("importing", process)

        process.send_signal(number)
        out, err = await process.communicate()

    assert 128 + number == process.returncode
    assert (b"", b"") == (out, err)


async def test_ctrl_c_between_attempts_ends_the_command(tmp_path: Path) -> None:
    """A long delay before the next attempt can be left."""
    code = "from penstock import flow\n@flow(retries=1, retry_delay=3_600)\ndef tide():\n    1 / 0\n"
    async with running("run", "--path", written(tmp_path, code), **NOWHERE) as process:
        await line_with("the next one begins in 3600 s", process)

        process.send_signal(signal.SIGINT)

        assert 130 == await process.wait()


async def test_breakpoint_has_the_terminal(tmp_path: Path) -> None:
    """On a terminal a flow can be debugged."""
    code = "from penstock import flow\n@flow\ndef tide():\n    x = 40\n    breakpoint()\n    return x + 2\n"

    async with at_a_terminal("run", "--path", written(tmp_path, code), **NOWHERE) as terminal:
        await terminal.until("(Pdb)")
        terminal.type("x = 50; print('chan' + 'ged')\n")
        await terminal.until("changed")
        terminal.type("c\n")
        await terminal.until("Result: 52")

        assert 0 == await terminal.ended()


async def test_ctrl_c_at_the_terminal_interrupts_the_flow_once(tmp_path: Path) -> None:
    """The terminal tells the flow; the command does not tell it again, which would break off its clean-up."""
    code = SLOW.replace('print("out")', 'time.sleep(0.5); print("put away")')

    async with at_a_terminal("run", "--path", written(tmp_path, code), **NOWHERE) as terminal:
        await terminal.until("in\n")
        terminal.type(CTRL_C)
        await terminal.until("put away")

        assert 130 == await terminal.ended()
        assert "Traceback" not in terminal.shown
