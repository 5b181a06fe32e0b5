"""What a conversion finds wrong with a request."""

from collections.abc import Callable
from typing import Any

import pytest

from penstock.domain.errors import InvalidRequest


def wrong(convert: Callable[..., Any], *given: Any, **named: Any) -> list[tuple[str, str]]:
    """Field and sentence of every violation, in the order they are listed."""
    with pytest.raises(InvalidRequest) as refused:
        convert(*given, **named)
    return [(each.field, each.description) for each in refused.value.violations]


def wrong_fields(convert: Callable[..., Any], *given: Any, **named: Any) -> list[str]:
    """The fields of every violation."""
    return [field for field, _ in wrong(convert, *given, **named)]
