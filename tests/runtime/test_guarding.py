"""What becomes of a mistake of ours."""

import asyncio

import pytest

from penstock.runtime.guarding import guarded


async def give(value: int) -> int:
    return value


async def fail(error: BaseException) -> int:
    raise error


async def told(error: Exception) -> int:
    return len(str(error))


async def test_work_that_succeeds_has_its_own_outcome(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is logged, and the consequence is not drawn."""
    assert 7 == await guarded(give(7), "pouring failed", told)
    assert [] == caplog.records


async def test_a_mistake_is_logged_and_has_its_consequence(caplog: pytest.LogCaptureFixture) -> None:
    """With its traceback, because nobody expected it; what comes of it depends on the error."""
    assert 3 == await guarded(fail(RuntimeError("dry")), "pouring failed", told)

    (record,) = caplog.records
    assert "pouring failed" == record.getMessage()
    assert record.exc_info is not None
    assert RuntimeError is record.exc_info[0]


async def test_being_cancelled_is_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    """It goes through, and nothing is logged."""
    with pytest.raises(asyncio.CancelledError):
        await guarded(fail(asyncio.CancelledError()), "pouring failed", told)

    assert [] == caplog.records


async def test_a_consequence_that_fails_is_heard_of() -> None:
    """There is no second net."""

    async def fail_again(error: Exception) -> int:
        raise ValueError("nor that") from error

    with pytest.raises(ValueError, match="nor that"):
        await guarded(fail(RuntimeError("dry")), "pouring failed", fail_again)
