"""Dockerfile: it passes its linter, and the image is small, unprivileged and made of what the tree has."""

import re
import shutil
import subprocess
import sysconfig
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
INSTRUCTIONS = re.sub(r"\\\n", "", DOCKERFILE.read_text())
FINAL_STAGE = INSTRUCTIONS.rpartition("\nFROM ")[2]
COPIED = [
    source
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", INSTRUCTIONS, flags=re.MULTILINE)
    for source in sources.split()
]


def test_lint() -> None:
    """The linter finds nothing to say."""
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    assert hadolint, "hadolint is not installed; the extra `test` brings it"

    linted = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)

    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize("source", COPIED)
def test_what_is_copied_reaches_the_builder(source: str) -> None:
    """Each thing copied into the image exists, and the ignore file lets it through."""
    let_through = re.findall(r"^!(.+)$", (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text(), re.MULTILINE)

    assert (ROOT / source).exists()
    assert any(fnmatch(source, each) for each in let_through)


def test_what_the_wheel_needs_is_copied() -> None:
    """The build stage has the packages, the README that describes them, and the versions to install."""
    expected = {"pyproject.toml", "README.md", "services", "gen/python"}

    assert expected <= set(COPIED)
    assert "--constraint services/constraints.txt" in INSTRUCTIONS


def test_the_image_does_not_run_as_root() -> None:
    """The last user is one by number that the image itself created."""
    users = re.findall(r"^USER (\S+)$", FINAL_STAGE, flags=re.MULTILINE)

    assert users
    assert f"--uid {users[-1]} " in FINAL_STAGE
    assert users[-1] != "0"


def test_the_image_holds_no_build_tools() -> None:
    """The final stage installs nothing, and takes from the other only the environment."""
    taken = re.findall(r"^COPY --from=\S+ (\S+)", FINAL_STAGE, flags=re.MULTILINE)

    assert taken == ["/opt/penstock"]
    assert "--without-pip /opt/penstock" in INSTRUCTIONS
    assert not re.search(r"\binstall\b|\bapt", FINAL_STAGE.replace("uninstall", ""))
