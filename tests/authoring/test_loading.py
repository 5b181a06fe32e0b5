"""Finding flows in an author's files and modules."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.authoring import loading

FLOWS = """
from penstock import flow

@flow
def first(a: int = 1):
    return a + 1

@flow(name="Second")
def second():
    pass

alias = first

def plain(text="x"):
    return text
"""


@pytest.fixture(autouse=True)
def _imports_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test works in a directory of its own, and leaves no module behind."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(name: str, text: str) -> Path:
    path = Path(name).absolute()
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_flow_is_loaded_from_a_file() -> None:
    """The entry point of what was loaded holds an absolute path, whatever was asked for."""
    path = write("rivers.py", FLOWS)

    loaded = loading.load("rivers.py:first")

    assert loaded(2) == 3
    assert f"{path}:first" == loaded.entry_point


def test_a_flow_is_loaded_from_a_module() -> None:
    """A module beside where one stands can be named as well as an installed one."""
    write("valley/__init__.py", "")
    write("valley/rivers.py", FLOWS)

    loaded = loading.load("valley.rivers:second")

    assert loaded.name == "Second"
    assert loaded.entry_point == "valley.rivers:second"


def test_a_plain_function_can_be_executed() -> None:
    """An entry point needs no decorator."""
    write("rivers.py", FLOWS)

    loaded = loading.load("rivers.py:plain")

    assert (loaded.name, loaded()) == ("plain", "x")


def test_a_file_may_import_what_is_beside_it() -> None:
    """As when Python runs a script."""
    write("deep/beside.py", "answer = 42\n")
    path = write("deep/rivers.py", "import beside\ndef example():\n    return beside.answer\n")

    assert loading.load(f"{path}:example")() == 42


def test_a_file_may_bear_the_name_of_a_module() -> None:
    """A file called json.py neither is taken for the standard one nor takes its place."""
    import json

    path = write("json.py", FLOWS)

    assert loading.load(f"{path}:first")() == 2
    assert json is sys.modules["json"]


def test_discovering_lists_each_flow_once_in_order() -> None:
    """Aliases and plain functions are no flows of their own."""
    path = write("rivers.py", FLOWS)

    found = loading.discover("rivers.py")

    assert [(f"{path}:first", "first"), (f"{path}:second", "Second")] == [(point, each.name) for point, each in found]
    assert [point for point, _ in found] == [each.entry_point for _, each in found]


def test_discovering_leaves_out_what_was_imported() -> None:
    """A flow belongs to the module that defines it."""
    write("rivers.py", FLOWS)
    write("lakes.py", "from rivers import first\nfrom penstock import flow\n@flow\ndef own(): pass\n")

    assert [point for point, _ in loading.discover("lakes")] == ["lakes:own"]


@pytest.mark.parametrize(
    ("entry_point", "kind", "message"),
    [
        ("rivers.py", loading.EntryPointMalformed, "'rivers.py' is no entry point: write path/to/file.py:function"),
        ("rivers.py:", loading.EntryPointMalformed, "'rivers.py:' is no entry point"),
        ("nowhere.py:example", loading.SourceMissing, "there is no file .*/nowhere.py"),
        ("nowhere.at.all:example", loading.SourceMissing, "there is no module nowhere.at.all"),
        ("rivers.py:third", loading.FunctionMissing, "defines no 'third'; it has the flows first, second, alias"),
        ("rivers.py:NUMBER", loading.FunctionMissing, "'NUMBER' in .*/rivers.py is no function but int"),
        ("broken.py:x", loading.ImportFailed, "broken.py cannot be imported: ValueError: no water today$"),
        ("leaving.py:x", loading.ImportFailed, "leaving.py cannot be imported: SystemExit: 3$"),
        ("needy:x", loading.ImportFailed, "needy cannot be imported: ModuleNotFoundError: No module named 'absent'"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_said_in_one_line(
    entry_point: str, kind: type[loading.LoadingError], message: str
) -> None:
    """The message says what was looked for and what is there, or what the author's own code raised."""
    write("rivers.py", FLOWS + "NUMBER = 1\n")
    write("broken.py", "raise ValueError('no\\nwater today')\n")
    write("leaving.py", "raise SystemExit(3)\n")
    write("needy.py", "import absent\n")

    with pytest.raises(loading.LoadingError, match=message) as caught:
        loading.load(entry_point)

    assert kind is type(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "it has no functions"),
        ("def one(): ...\ndef two(): ...\n", "it has the functions one, two"),
        ("from rivers import first\n", "it has the flows first"),
    ],
)
def test_a_file_without_flows_says_what_is_there(text: str, message: str) -> None:
    """Most often the decorator was forgotten."""
    write("rivers.py", FLOWS)
    path = write("dry.py", text)

    with pytest.raises(loading.NoFlowsFound, match=f"{path} defines no flows; {message}. Put @flow above"):
        loading.discover(path)


def test_a_failed_import_leaves_no_half_module_behind() -> None:
    """A second try imports again."""
    write("rivers.py", "raise ValueError('dry')\n")
    with pytest.raises(loading.ImportFailed):
        loading.load("rivers.py:first")
    write("rivers.py", FLOWS)

    assert loading.load("rivers.py:first")() == 2
