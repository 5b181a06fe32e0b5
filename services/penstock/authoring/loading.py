"""Finds flows in an author's files and modules. Each failure says in one line what was looked for and what is there."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from penstock.authoring.flow import Flow, flow


class LoadingError(Exception):
    """The author's code could not be loaded, or holds no such flow. The text is meant for the author."""


class EntryPointMalformed(LoadingError):
    """An entry point is neither "path/to/file.py:function" nor "package.module:function"."""


class SourceMissing(LoadingError):
    """There is no such file or module."""


class FunctionMissing(LoadingError):
    """The file or module defines no such function."""


class NoFlowsFound(LoadingError):
    """The file or module defines no flows."""


class ImportFailed(LoadingError):
    """The author's code raised while it was imported. The exception is the cause of this one."""


def load(entry_point: str) -> Flow[..., Any]:
    """Load the flow that an entry point names. A plain function is a flow with nothing but defaults."""
    source, separator, name = entry_point.rpartition(":")
    if not separator or not source or not name.isidentifier():
        raise EntryPointMalformed(
            f"{entry_point!r} is no entry point: write path/to/file.py:function or package.module:function"
        )
    module, where = _import(source)
    found = getattr(module, name, None)
    if found is None:
        raise FunctionMissing(f"{where} defines no {name!r}; {_what_is_in(module)}")
    if not callable(found):
        raise FunctionMissing(f"{name!r} in {where} is no function but {type(found).__name__}")
    return replace(_as_flow(found), entry_point=f"{where}:{name}")


def discover(path_or_module: str | Path) -> list[tuple[str, Flow[..., Any]]]:
    """List the flows that a file or module itself defines, with their entry points, in the order of definition."""
    module, where = _import(str(path_or_module))
    found: list[tuple[str, Flow[..., Any]]] = []
    for name, value in vars(module).items():
        is_new = all(value.function is not known.function for _, known in found) if isinstance(value, Flow) else False
        if is_new and value.__module__ == module.__name__:
            entry_point = f"{where}:{name}"
            found.append((entry_point, replace(value, entry_point=entry_point)))
    if not found:
        raise NoFlowsFound(
            f"{where} defines no flows; {_what_is_in(module)}. Put @flow above a function to make it one."
        )
    return found


def _as_flow(found: Callable[..., Any]) -> Flow[..., Any]:
    return found if isinstance(found, Flow) else flow(found)


def _import(source: str) -> tuple[ModuleType, str]:
    """Import a file or module; return it and its name in entry points, in which a file's path is absolute."""
    if source.endswith(".py") or "/" in source:
        path = Path(source).expanduser().resolve()
        return _import_file(path), str(path)
    return _import_module(source), source


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}")
    # As when Python runs a script: modules beside the file can be imported.
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = path.stem if _is_free(path.stem) else f"penstock_flow_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SourceMissing(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ImportFailed(f"{path} cannot be imported: {_in_one_line(error)}") from error
    return module


def _is_free(name: str) -> bool:
    return name not in sys.modules and name not in sys.stdlib_module_names


def _import_module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise SourceMissing(f"there is no module {name} (looked for it from {Path.cwd()})") from error
        raise ImportFailed(f"module {name} cannot be imported: {_in_one_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise ImportFailed(f"module {name} cannot be imported: {_in_one_line(error)}") from error


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _what_is_in(module: ModuleType) -> str:
    flows = [name for name, value in vars(module).items() if isinstance(value, Flow)]
    if flows:
        return f"it has the flows {', '.join(flows)}"
    functions = [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
    if functions:
        return f"it has the functions {', '.join(functions)}"
    return "it has no functions"
