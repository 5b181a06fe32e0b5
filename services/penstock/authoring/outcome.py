"""How the author's code is called, and what becomes of what it returns or raises."""

import asyncio
import importlib
import inspect
import json
import os
import traceback
from collections.abc import Mapping
from itertools import dropwhile
from pathlib import Path
from typing import Any, Final

from penstock.authoring.flow import Flow
from penstock.authoring.loading import ImportFailed
from penstock.domain import json_text
from penstock.domain.limits import JSON_DEPTH_MAX, RESULT_BYTES_MAX


def call(flow: Flow[..., Any], parameters: Mapping[str, Any]) -> object:
    """Call a flow, and see a coroutine through."""
    result = flow(**parameters)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def result_json(result: object) -> str | None:
    """What the flow returned, as JSON text; None when it returned nothing. Raises TypeError for what cannot be kept."""
    if result is None:
        return None
    try:
        text = json.dumps(result, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
        if size <= RESULT_BYTES_MAX:
            json_text.parse(text)
    except (TypeError, ValueError, RecursionError) as error:
        what = _what_is_wrong(result, "result") or f"result {error}"
        raise TypeError(f"the flow returned what cannot be written as JSON: {what}") from None
    if size > RESULT_BYTES_MAX:
        raise TypeError(
            f"the flow returned {size:,} bytes of JSON, and {RESULT_BYTES_MAX:,} is the most that is kept: "
            "store it elsewhere and return where"
        )
    return text


def failure_of(error: BaseException) -> dict[str, Any]:
    """The failure in what the author's code raised. Its traceback shows none of what called that code."""
    # The author's own exception says more than our saying that the import failed.
    if isinstance(error, ImportFailed) and error.__cause__ is not None:
        error = error.__cause__
    told = traceback.TracebackException.from_exception(error)
    _leave_out_our_frames(told)
    return {"type": type(error).__qualname__, "message": str(error), "traceback": "".join(told.format())}


def _what_is_wrong(value: object, path: str, above: frozenset[int] = frozenset()) -> str | None:
    """The first part of a value that JSON cannot hold, as Python would write the way to it."""
    if not isinstance(value, dict | list | tuple):
        return _what_is_wrong_with_leaf(value, path)
    if id(value) in above:
        return f"{path} holds itself"
    if len(above) == JSON_DEPTH_MAX:
        return f"it is nested deeper than {JSON_DEPTH_MAX} levels"
    members = value.items() if isinstance(value, dict) else enumerate(value)
    for name, member in members:
        if name is not None and not isinstance(name, str | int | float):
            return f"{path} has a key of type {type(name).__qualname__}: {name!r}"
        if problem := _what_is_wrong(member, f"{path}[{name!r}]", above | {id(value)}):
            return problem
    return None


def _what_is_wrong_with_leaf(value: object, path: str) -> str | None:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except TypeError:
        return f"{path} is of type {type(value).__qualname__}"
    except UnicodeEncodeError:
        return f"{path} is text with half of a surrogate pair"
    except ValueError as error:
        return f"{path} is {value}" if isinstance(value, float) else f"{path}: {error}"
    return None


_OURS: Final = f"{Path(__file__).parents[1]}{os.sep}"
_EXAMPLES: Final = f"{_OURS}examples{os.sep}"
# What leads from our code to the author's.
_LEADING: Final = tuple(f"{Path(inspect.getfile(each)).parent}{os.sep}" for each in (asyncio, importlib))


def _leave_out_our_frames(told: traceback.TracebackException) -> None:
    frames = dropwhile(lambda frame: _leads_in(frame.filename), told.stack or ())
    kept = [frame for frame in frames if not _is_ours(frame.filename)]
    # Without a frame there is nothing that a heading could announce.
    told.stack = traceback.StackSummary.from_list(kept) if kept else None  # type: ignore[assignment]
    for other in (told.__cause__, told.__context__, *(told.exceptions or ())):
        if other is not None:
            _leave_out_our_frames(other)


def _leads_in(file: str) -> bool:
    return _is_ours(file) or file.startswith(("<frozen importlib", *_LEADING))


def _is_ours(file: str) -> bool:
    return file.startswith(_OURS) and not file.startswith(_EXAMPLES)
