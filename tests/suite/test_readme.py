"""The README is true: every command in it runs, in its order, in an empty home."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.suite.installation import Installation, clean_environment, four_free_ports, installed

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COPY_IGNORES = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "node_modules")

pytestmark = pytest.mark.slow


def section(title: str) -> str:
    """The text under a heading."""
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def blocks(title: str, language: str) -> list[str]:
    """The fenced blocks of a language under a heading."""
    return re.findall(rf"^```{language}\n(.*?)^```$", section(title), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("title", ["Run it", "Test it"])
def test_one_command_line_runs_it_and_one_tests_it(title: str) -> None:
    """Each of the two headings is followed by a single fenced block with a single line."""
    (block,) = re.findall(r"^```.*?^```$", section(title), flags=re.DOTALL | re.MULTILINE)

    assert len(block.splitlines()) == 3


def test_the_first_command_does_the_main_job_in_a_fresh_copy(tmp_path: Path) -> None:
    """From a bare tree, without an environment and with an empty home, it ends well with a run that succeeded."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=COPY_IGNORES)
    (line,) = blocks("Run it", "bash")

    done = subprocess.run(
        ["bash", "-c", line],
        cwd=tree,
        env=bare_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCEEDED" in done.stdout
    assert (tree / "penstock-report" / "river-report.html").stat().st_size > 1_000


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_the_commands_work_one_after_another(tmp_path: Path, database_url: str) -> None:
    """Services and agent in the background, then the flows, the commands and the Python client as written."""
    server, agent, *commands = blocks("Use it", "bash")
    flow, client = blocks("Use it", "python")
    creating, children = blocks("Create runs", "bash")
    (parent,) = blocks("Create runs", "python")
    (steering,) = blocks("Follow, stop, restart, explain", "bash")
    assert [server, agent] == ["penstock server start\n", "penstock agent start\n"]

    with installed(tmp_path, database_url) as (here, _), here.agent():
        (tmp_path / "tide.py").write_text(flow)
        (tmp_path / "client.py").write_text(client)
        (tmp_path / "tides.py").write_text(parent)
        with_ports = [each.replace("server status", f"server status --port-base {here.port_base}") for each in commands]
        shown = [shell(here, each) for each in with_ports]
        seen = shell(here, f"{sys.executable} client.py")
        created = shell(here, creating)
        with_children = shell(here, children)
        steered = shell(here, steering)
        left = here.documents("get", "flow-runs", "--state", "cancelled")

    assert "reading 2 of harbour" in shown[0]
    assert "SUCCEEDED" in shown[0]
    assert [line for line in shown[1].splitlines() if "│" in line and '{"who":"you"}' in line], shown[1]
    assert "SUCCEEDED" in seen
    assert "reading 0 of pier" in seen
    assert created.count("reading 2 of here") >= 2, created
    assert "reading 2 of east" in with_children
    assert '"station": "west"' in with_children
    assert "due" in steered
    assert [] == left


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
def test_the_command_for_postgresql_starts_the_services_there(tmp_path: Path, database_url: str) -> None:
    """With a database in DATABASE_URL the line as written serves; the port alone is chosen for the test."""
    (line,) = blocks("On PostgreSQL", "bash")
    here = Installation(tmp_path, four_free_ports(), {"DATABASE_URL": database_url})
    start = ("bash", "-c", f"exec {line.strip()} --port-base {here.port_base}")

    with here.running("server", *start, environ=with_commands(here)) as server:
        server.wait_for("is ready")
        status = here.penstock("server", "status", "--port-base", str(here.port_base))

    assert status.returncode == 0, status.stdout + status.stderr


def shell(here: Installation, script: str) -> str:
    """Run a script as a person would, and return what it shows; it must succeed."""
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=here.directory,
        env=with_commands(here),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, script + done.stdout + done.stderr
    return done.stdout


def with_commands(here: Installation) -> dict[str, str]:
    """An environment in which a shell finds the `penstock` of this interpreter."""
    return {**here.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def bare_environment(home: Path) -> dict[str, str]:
    """What a new user's shell has: no active environment, no settings, an empty home."""
    environ = clean_environment()
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"):
        environ.pop(name, None)
    (home / "home").mkdir()
    path = [each for each in environ["PATH"].split(":") if not Path(each).is_relative_to(sys.prefix)]
    return {**environ, "HOME": str(home / "home"), "PATH": ":".join(path)}
