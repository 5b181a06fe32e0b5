"""services/constraints.txt: a version of everything, and nothing but names and versions."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LINES = [line for line in (ROOT / "services" / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def requirements() -> Iterator[Requirement]:
    """What the package asks for, with its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for each in [*project["dependencies"], *(e for extra in project["optional-dependencies"].values() for e in extra)]:
        requirement = Requirement(each)
        if requirement.name != project["name"]:
            yield requirement


def test_names_and_versions_only() -> None:
    """No line names a place to fetch from; the lines are sorted, so that a change is easy to read."""
    assert LINES
    assert not [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)]
    assert sorted(LINES, key=lambda line: line.lower().split("==")) == LINES


def test_every_requirement_has_a_version_that_satisfies_it() -> None:
    """What the package asks for is bound to one version, which is one it accepts."""
    bound = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}

    for requirement in requirements():
        version = bound.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} has no line"
        assert requirement.specifier.contains(version), f"{version} is not what {requirement} asks for"
