"""`penstock quickstart`."""

import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.cli import quickstart
from tests.cli.command import line_with, penstock, running


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for temporary files with a short path, because services ring each other at sockets in it."""
    with tempfile.TemporaryDirectory(prefix="qs-") as directory:
        yield Path(directory)


def processes_under(directory: Path) -> list[str]:
    """The processes whose command or environment names this directory."""
    listed = subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(directory) in line and "ps axeww" not in line]


def databases_under(directory: Path) -> list[Path]:
    """The databases that were left in this directory."""
    return list(directory.rglob("penstock.db*"))


def read_report(path: str) -> str:
    """What a person who opens the report sees the source of."""
    return Path(path).read_text(encoding="utf-8")


@pytest.mark.slow
async def test_a_newcomer_sees_a_run_from_beginning_to_end(tmp_path: Path, scratch: Path) -> None:
    """Quickstart runs the example, shows it live, its timeline and its report, and leaves nothing running."""
    shown = await penstock("quickstart", cwd=tmp_path, TMPDIR=str(scratch), PENSTOCK_ADDRESS="nowhere.invalid:1")

    assert (0, "") == (shown.code, shown.err)
    assert re.search(r"│ INFO +Read \d+ rows", shown.out)
    states = re.findall(r"^[\d:]{8}  ([A-Z]+)", shown.out, re.MULTILINE)
    assert ["SCHEDULED", "SUBMITTED", "RUNNING", "SUCCEEDED"] == states
    moments = re.findall(r"^(\w+) +(\d+\.\d+) s", shown.out, re.MULTILINE)
    assert ["created", "due", "leased", "submitted", "running", "succeeded"] == [what for what, _ in moments]
    assert sorted(float(after) for _, after in moments) == [float(after) for _, after in moments]
    (report,) = re.findall(r"Its report: (.+)", shown.out)
    assert tmp_path / "penstock-report" == Path(report).parent
    assert read_report(report).startswith("<!doctype html>")
    assert ["penstock server start", "penstock agent start"] == re.findall(r"^  (penstock \w+ start)$", shown.out, re.M)
    assert [] == databases_under(scratch)
    assert [] == processes_under(scratch)


@pytest.mark.slow
async def test_an_interrupted_quickstart_leaves_nothing_running(tmp_path: Path, scratch: Path) -> None:
    """Ctrl-C while the example runs stops it, the agent and the services."""
    async with running("quickstart", cwd=tmp_path, TMPDIR=str(scratch)) as process:
        await line_with("│ INFO", process)

        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()

    assert 130 == process.returncode
    assert (b"", "Interrupted; nothing is left running.") == (err, out.decode().splitlines()[-1])
    assert [] == processes_under(scratch)


@pytest.mark.slow
async def test_a_kept_directory_serves_again(tmp_path: Path) -> None:
    """With --keep the database stays, and the user is told how to look at it again."""
    kept = tmp_path / "kept"

    shown = await penstock("quickstart", "--keep", str(kept), "--report", str(tmp_path / "here"), cwd=tmp_path)

    assert 0 == shown.code
    assert f"penstock server start --data-dir {kept}" in shown.out
    assert (kept / "penstock.db").is_file()
    assert (tmp_path / "here").is_dir()


@pytest.mark.slow
async def test_a_quickstart_that_fails_says_what_failed(tmp_path: Path, scratch: Path) -> None:
    """When the run cannot write its report, the user sees the run's failure and exit code 1."""
    blocker = tmp_path / "file"
    blocker.write_text("")

    shown = await penstock("quickstart", "--report", str(blocker / "report"), cwd=tmp_path, TMPDIR=str(scratch))

    assert 1 == shown.code
    assert "The run failed: NotADirectoryError" in shown.out
    assert [] == processes_under(scratch)


def test_the_example_ships_with_the_package() -> None:
    """The flow that quickstart runs is one of the examples."""
    from penstock.examples.river_report import river_report

    assert quickstart.EXAMPLE == river_report.name
