"""Idempotency keys and request ids, on both databases."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

import pytest

from penstock.domain.flow_run import Fingerprint
from penstock.domain.ids import FlowRunId, TenantId
from penstock.storage import keys
from penstock.storage.database import Database, Transaction
from penstock.storage.keys import Claim, Key, TargetKind
from tests.queue.scenes import SECOND, TENANT, until_someone_waits
from tests.storage.gate import Gate
from tests.support.builders import an_id
from tests.support.fake_clock import FakeClock

OTHER_TENANT = TenantId(UUID(int=7))
PRINT = Fingerprint(b"p", b"c", b"l", b"r")
TARGET = an_id()


def a_claim(key: str, kind: TargetKind = TargetKind.FLOW, target: UUID = TARGET) -> Claim:
    return Claim(Key(kind, target, key), FlowRunId(an_id()), PRINT)


async def claim(database: Database, *claims: Claim, tenant: TenantId = TENANT) -> dict[Key, FlowRunId]:
    """Claim, and see whose the keys are then."""

    def work(tx: Transaction) -> dict[Key, FlowRunId]:
        keys.claim(tx, tenant, claims)
        found = keys.find(tx, tenant, [each.key for each in claims])
        return {key: each.flow_run_id for key, each in found.items()}

    return await database.run(work)


async def test_the_first_claim_counts(database: Database) -> None:
    """In one transaction, and later; a claim comes back whole."""
    first, second, third = a_claim("k"), a_claim("k"), a_claim("k")

    assert await claim(database, first, second) == {first.key: first.flow_run_id}
    assert await claim(database, third) == {first.key: first.flow_run_id}
    assert await database.read(keys.find, TENANT, [first.key]) == {first.key: first}


async def test_kinds_targets_and_tenants_keep_their_keys_apart(database: Database) -> None:
    """The same text is another key within another scope; nothing asked, nothing found."""
    claims = [a_claim("k", kind, target) for kind in TargetKind for target in (TARGET, UUID(int=0))]
    assert await claim(database, *claims) == {each.key: each.flow_run_id for each in claims}
    (foreign,) = [a_claim("k")]
    assert await claim(database, foreign, tenant=OTHER_TENANT) == {foreign.key: foreign.flow_run_id}
    assert await database.read(keys.find, TENANT, []) == {}
    assert await database.read(keys.find, TENANT, [Key(TargetKind.FLOW, TARGET, "unknown")]) == {}


async def test_any_text_is_a_key(database: Database) -> None:
    """To the letter: case, accents and spaces make a difference."""
    claims = [a_claim(each) for each in ("k", "K", "ķ", " k", "k ", "'; --", "k" * 255)]

    assert await claim(database, *claims) == {each.key: each.flow_run_id for each in claims}


async def test_forgotten_keys_are_free(database: Database) -> None:
    """Of these runs alone."""
    kept, forgotten = a_claim("kept"), a_claim("forgotten")
    await claim(database, kept, forgotten)

    await database.run(keys.forget, TENANT, [forgotten.flow_run_id])
    await database.run(keys.forget, TENANT, [])

    again = a_claim("forgotten")
    assert await claim(database, kept, again) == {kept.key: kept.flow_run_id, again.key: again.flow_run_id}


async def test_claims_in_any_order_never_wait_in_a_circle(database: Database) -> None:
    """Transactions that claim the same keys from both ends agree on one owner for each."""
    calls: list[int] = []

    def work(tx: Transaction, turn: int, order: int) -> dict[Key, FlowRunId]:
        calls.append(order)
        claims = [a_claim(f"{turn} {number}") for number in range(2_000)][::order]
        keys.claim(tx, TENANT, claims)
        return {key: each.flow_run_id for key, each in keys.find(tx, TENANT, [each.key for each in claims]).items()}

    for turn in range(3):
        one, other = await asyncio.gather(*(database.run(work, turn, order) for order in (1, -1)))
        assert one == other
        assert len(one) == 2_000

    assert len(calls) == 6, "a transaction was repeated after a deadlock"


async def test_a_retired_key_says_when(database: Database, clock: FakeClock) -> None:
    """The request id of the same run is forgotten; other runs keep theirs."""
    run = FlowRunId(an_id())
    key = Claim(Key(TargetKind.FLOW, TARGET, "k"), run, PRINT)
    request = Claim(Key(TargetKind.REQUEST, UUID(int=0), "r"), run, PRINT)
    other = a_claim("other", TargetKind.REQUEST)
    await claim(database, key, request, other)
    clock.advance(SECOND)

    retired = clock.now()

    await database.run(keys.retire, OTHER_TENANT, run)
    assert 3 == len(await database.read(keys.find, TENANT, [key.key, request.key, other.key]))
    await database.run(keys.retire, TENANT, run)
    clock.advance(SECOND)
    await database.run(keys.retire, TENANT, run)

    found = await database.read(keys.find, TENANT, [key.key, request.key, other.key])
    assert found == {key.key: replace(key, delete_time=retired), other.key: other}


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
async def test_who_claims_a_key_that_is_being_retired_waits_for_it(database: Database, clock: FakeClock) -> None:
    """And then finds it retired."""
    run = FlowRunId(an_id())
    first = Claim(Key(TargetKind.FLOW, TARGET, "k"), run, PRINT)
    await claim(database, first)
    gate = Gate()

    def retiring(tx: Transaction) -> None:
        keys.retire(tx, TENANT, run)
        gate.stop_here()

    def claiming(tx: Transaction) -> Mapping[Key, Claim]:
        keys.claim(tx, TENANT, [a_claim("k")])
        return keys.find(tx, TENANT, [first.key])

    one = asyncio.create_task(database.run(retiring))
    await gate.reached()
    other = asyncio.create_task(database.run(claiming))
    await until_someone_waits(database)
    gate.open()
    await one

    assert {first.key: replace(first, delete_time=clock.now())} == await other
