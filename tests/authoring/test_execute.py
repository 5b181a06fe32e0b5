"""The body as a real process: its gate, its records and its end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from penstock.authoring.execute import EXIT_NOT_BEGUN
from tests.agent.waiting import is_gone

ROOT = Path(__file__).parents[2]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Body:
    """One body process and the pipes around it."""

    def __init__(self, directory: Path, code: str, parameters: dict[str, Any], **variables: str) -> None:
        file = directory / "example_flow.py"
        file.write_text(f"from penstock import current_flow_run, flow, get_logger\n\n{code}")
        (directory / "parameters.json").write_text(json.dumps(parameters))
        (directory / "context.json").write_text("{}")
        records_out, records_in = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penstock.authoring.execute", f"{file}:example", str(records_in)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[records_in],
            start_new_session=True,
            cwd=directory,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join([str(ROOT / "services"), str(ROOT / "gen" / "python")]),
                "PENSTOCK_FLOW_RUN_ID": "run",
                "PENSTOCK_FENCE": "7",
                "PENSTOCK_ATTEMPT": "2",
                "PENSTOCK_FLOW_NAME": "example",
                "PENSTOCK_FLOW_RUN_NAME": "quiet-river",
                "PENSTOCK_PARAMETERS_FILE": str(directory / "parameters.json"),
                "PENSTOCK_CONTEXT_FILE": str(directory / "context.json"),
                **variables,
            },
        )
        os.close(records_in)
        self._records = open(records_out, encoding="utf-8")  # noqa: SIM115 - closed by `close`

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{TRACEPARENT} \n".encode())
        self.process.stdin.flush()

    def record(self) -> dict[str, Any]:
        """The next record."""
        record: dict[str, Any] = json.loads(self._records.readline())
        return record

    def records(self) -> list[dict[str, Any]]:
        """All records until the end."""
        return [json.loads(line) for line in self._records]

    def forget_records(self) -> None:
        self._records.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr, self._records):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def bodies(tmp_path: Path) -> Iterator[Any]:
    started: list[Body] = []

    def start(code: str, parameters: dict[str, Any] | None = None, *, go: bool = True, **variables: str) -> Body:
        started.append(Body(tmp_path, code, parameters or {}, **variables))
        if go:
            started[-1].go()
        return started[-1]

    yield start
    for body in started:
        body.close()


def test_nothing_is_executed_before_the_gate_opens(bodies: Any, tmp_path: Path) -> None:
    """A gate that closes means that the run must not begin."""
    body = bodies("open('witness', 'w')\n@flow\ndef example(): pass\n", go=False)

    body.process.stdin.close()

    assert body.process.wait(20) == EXIT_NOT_BEGUN
    assert body.records() == []
    assert not (tmp_path / "witness").exists()


async def test_what_the_code_started_ends_when_the_gate_closes(bodies: Any) -> None:
    """The whole group ends with the supervisor."""
    body = bodies(
        "import subprocess, time\n@flow\ndef example():\n"
        "    print(subprocess.Popen(['sleep', '60']).pid)\n    time.sleep(60)\n"
    )
    child = int(body.record()["text"])

    body.process.stdin.close()

    assert await is_gone(child)
    assert body.process.wait(20) == -signal.SIGKILL


def test_lines_and_the_result_are_records(bodies: Any) -> None:
    """Prints, loggers and stderr have one order, a time, and the trace; the result comes last."""
    body = bodies(
        "import sys\n@flow\ndef example(a, b=2):\n    print('one')\n    get_logger().warning('two')\n"
        "    print('three', file=sys.stderr)\n    return a + b\n",
        {"a": 40},
    )

    *lines, result = body.records()

    assert [(line["stream"], line["text"]) for line in lines] == [
        ("stdout", "one"),
        ("logger", "two"),
        ("stderr", "three"),
    ]
    assert (lines[1]["level"], lines[1]["logger"]) == ("WARNING", "example")
    assert {TRACEPARENT.split("-")[1]} == {line["trace_id"] for line in lines}
    assert all(earlier["time"] <= later["time"] for earlier, later in pairwise(lines))
    assert result == {"kind": "result", "json": "42"}
    assert body.process.wait(20) == 0


def test_a_line_that_is_flushed_leaves_at_once(bodies: Any) -> None:
    """What was flushed outlives a process that is killed, and is marked as not ended."""
    body = bodies("import time\n@flow\ndef example():\n    print('half', end='', flush=True)\n    time.sleep(60)\n")

    record = body.record()

    assert (record["text"], record["open"]) == ("half", True)


def test_prints_do_not_fail_when_nobody_listens(bodies: Any, tmp_path: Path) -> None:
    """Without a supervisor the code goes on undisturbed."""
    body = bodies(
        "import os, time\n@flow\ndef example():\n    while not os.path.exists('go'): time.sleep(0.01)\n"
        "    print('x' * 100_000)\n    get_logger().info('y')\n    open('witness', 'w')\n"
    )
    body.forget_records()

    (tmp_path / "go").touch()

    assert body.process.wait(20) == 0
    assert (tmp_path / "witness").exists()


def test_threads_and_forks_keep_their_records_whole(bodies: Any) -> None:
    """Lines of eight threads are never mixed, and a forked child neither hangs nor says anything twice."""
    body = bodies(
        "import os, threading\n@flow\ndef example():\n"
        "    def speak(name):\n        for number in range(200): print(f'{name}-{number}')\n"
        "    threads = [threading.Thread(target=speak, args=(name,)) for name in 'abcdefgh']\n"
        "    for thread in threads: thread.start()\n"
        "    for thread in threads: thread.join()\n"
        "    print('unended ', end='')\n"
        "    if (child := os.fork()) == 0:\n        print('from the child', flush=True)\n        os._exit(0)\n"
        "    os.waitpid(child, 0)\n    print('line')\n"
    )

    texts = [record["text"] for record in body.records() if record["kind"] == "line"]

    assert {f"{name}-{number}" for name in "abcdefgh" for number in range(200)} == set(texts[:-2])
    assert texts[-2:] == ["from the child", "unended line"]


def test_the_log_level_is_the_runs(bodies: Any) -> None:
    """DEBUG is heard when the run asks for it; a level of one's own keeps its name."""
    body = bodies(
        "import logging\nlogging.addLevelName(25, 'NOTICE')\n@flow\ndef example():\n"
        "    logging.getLogger('a').debug('quiet')\n    logging.getLogger('a').log(25, 'noted')\n"
        "    try: 1 / 0\n    except ZeroDivisionError: logging.getLogger('a').exception('oh')\n",
        PENSTOCK_LOG_LEVEL="DEBUG",
    )

    lines = [record for record in body.records() if record.get("logger") == "a"]

    assert [(line["level"], line["level_name"]) for line in lines] == [
        ("DEBUG", "DEBUG"),
        ("INFO", "NOTICE"),
        ("ERROR", "ERROR"),
    ]
    assert lines[2]["text"].endswith("ZeroDivisionError: division by zero")


def test_a_failure_names_the_authors_code_alone(bodies: Any) -> None:
    """The traceback begins in the flow, also that of a coroutine; causes are kept."""
    body = bodies(
        "@flow\nasync def example():\n    try:\n        {}['key']\n    except KeyError as error:\n"
        "        raise RuntimeError('no key') from error\n"
    )

    failure = body.records()[-1]

    assert (failure["kind"], failure["type"], failure["message"]) == ("failure", "RuntimeError", "no key")
    assert "KeyError: 'key'" in failure["traceback"]
    assert "asyncio" not in failure["traceback"]
    assert "execute.py" not in failure["traceback"]
    assert body.process.wait(20) == 1


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("object()", "the flow returned what cannot be written as JSON: result is of type object"),
        ("{'rows': [1, {'at': {1, 2}}]}", "JSON: result['rows'][1]['at'] is of type set"),
        ("{'rate': float('nan')}", "JSON: result['rate'] is nan"),
        ("{(1, 2): 3}", "JSON: result has a key of type tuple: (1, 2)"),
        ("(a := [], a.append([a]))[0]", "JSON: result[0][0] holds itself"),
        ("[chr(0xd800)]", "JSON: result[0] is text with half of a surrogate pair"),
        ("json.loads('[' * 101 + ']' * 101)", "JSON: it is nested deeper than 100 levels"),
        ("[[]] * 1 and {1: 1, '1': 2}", "JSON: result names '1' twice in one object"),
        ("'x' * 524_287", "the flow returned 524,289 bytes of JSON, and 524,288 is the most that is kept"),
    ],
)
def test_a_result_must_fit(bodies: Any, returned: str, message: str) -> None:
    """What cannot be kept fails the run, and says what to do instead."""
    failure = bodies(f"import json\n@flow\ndef example():\n    return {returned}\n").records()[-1]

    assert failure["type"] == "TypeError"
    assert message in failure["message"]
    assert f"TypeError: {failure['message']}\n" == failure["traceback"]


def test_the_greatest_depth_is_kept(bodies: Any) -> None:
    """The limit itself is allowed."""
    result = bodies("import json\n@flow\ndef example():\n    return json.loads('[' * 100 + ']' * 100)\n").records()[-1]

    assert "[" * 100 + "]" * 100 == result["json"]


def test_a_failure_below_our_own_code_ends_at_the_authors_line(bodies: Any) -> None:
    """A flow that calls another, and one of our functions, shows its own lines and none of ours."""
    failure = bodies(
        "import asyncio\nfrom penstock import Client\n@flow\ndef inner():\n    Client.look_up_flow(None)\n"
        "@flow\ndef example():\n    try:\n        inner()\n    except AttributeError as error:\n"
        "        raise ExceptionGroup('all', [error]) from None\n"
    ).records()[-1]

    assert "in inner" in failure["traceback"]
    assert "services/penstock" not in failure["traceback"]
    assert "in example" in failure["traceback"]


def test_a_file_that_cannot_be_read_as_python_shows_its_line(bodies: Any) -> None:
    """A syntax error is shown as Python shows it, without a heading over no frames."""
    failure = bodies("@flow\ndef example():\n    return (\n").records()[-1]

    assert "SyntaxError" == failure["type"]
    assert failure["traceback"].startswith('  File "')
    assert "return (" in failure["traceback"]


def test_a_result_of_exactly_the_greatest_size_is_kept(bodies: Any) -> None:
    """The limit itself is allowed."""
    result = bodies("@flow\ndef example():\n    return 'x' * 524_286\n").records()[-1]

    assert len(result["json"]) == 524_288


def test_a_missing_parameter_fails_in_the_words_of_python(bodies: Any) -> None:
    """The failure names the parameter."""
    failure = bodies("@flow\ndef example(a): pass\n").records()[-1]

    assert "missing 1 required positional argument: 'a'" in failure["message"]


def test_leaving_with_a_message_is_a_failure_with_that_message(bodies: Any) -> None:
    """sys.exit('why') says why on stderr and exits with code 1."""
    body = bodies("import sys\n@flow\ndef example():\n    sys.exit('why')\n")

    assert [(record["stream"], record["text"]) for record in body.records()] == [("stderr", "why")]
    assert body.process.wait(20) == 1


def test_a_request_to_end_unwinds_the_code_and_ends_by_its_signal(bodies: Any) -> None:
    """SIGTERM lets `finally` blocks run; whoever waits for the process sees the signal."""
    body = bodies("import time\n@flow\ndef example():\n    try:\n        print('in')\n        time.sleep(60)\n"
                  "    finally:\n        print('out')\n")  # fmt: skip
    assert body.record()["text"] == "in"

    body.process.terminate()

    assert [record["text"] for record in body.records()] == ["out"]
    assert body.process.wait(20) == -signal.SIGTERM


def test_exact_integers_survive(bodies: Any) -> None:
    """Parameters are not squeezed through floating point."""
    number = 2**70 + 1

    result = bodies("@flow\ndef example(n):\n    return n\n", {"n": number}).records()[-1]

    assert str(number) == result["json"]
