"""The contract keeps the style that its README promises; what `buf lint` checks is left to it."""

import re
from collections.abc import Iterator
from itertools import chain

from penstock.wire.errors import CODES
from tests.protos.contract import Element, contract, elements

RPCS_PER_SERVICE_MAX = 12
NOT_SERVED = "Not served yet: answers UNIMPLEMENTED."


def of(kind: str) -> list[Element]:
    found = [element for element in elements() if element.kind == kind]
    assert found, f"the contract has no {kind}"
    return found


def refusals_in(comment: str) -> Iterator[tuple[str, str]]:
    """The pairs of code and reason that a comment names; a reason without a code shares that of the one before."""
    code = ""
    for named, reason in re.findall(r"(?:\b([A-Z]+(?:_[A-Z]+)*) )?/ ([A-Z]+(?:_[A-Z]+)*)\b", comment):
        code = named or code
        yield code, reason


def test_everything_is_commented() -> None:
    """Every element has a comment above it that is a sentence."""
    bare = [f"{each.kind} {each.name}" for each in elements() if not each.comment.endswith((".", ")"))]

    assert not bare


def test_enums_may_grow() -> None:
    """Every enum warns its readers that it may grow."""
    assert not [each.name for each in of("enum") if "This enum may grow." not in each.comment]


def test_imports() -> None:
    """The contract imports nothing but itself and google/protobuf, so plain protoc compiles it."""
    imported = set(chain.from_iterable(file.dependency for file in contract().file))

    assert not [name for name in imported if not name.startswith(("google/protobuf/", "flowrun/v1/"))]


def test_every_rpc_has_its_own_messages() -> None:
    """An rpc takes and returns messages that bear its name, so that each can grow by itself."""
    for service in chain.from_iterable(file.service for file in contract().file):
        for rpc in service.method:
            expected = (f".flowrun.v1.{rpc.name}Request", f".flowrun.v1.{rpc.name}Response")
            assert expected == (rpc.input_type, rpc.output_type)


def test_services_are_small() -> None:
    """No service has more rpcs than a person keeps in mind."""
    sizes = {service.name: len(service.method) for file in contract().file for service in file.service}

    assert not [name for name, size in sizes.items() if size > RPCS_PER_SERVICE_MAX]


def test_what_is_not_served_says_so() -> None:
    """An rpc that is not served yet ends its comment with one and the same sentence."""
    unserved = [each for each in of("rpc") if "UNIMPLEMENTED" in each.comment or "not served" in each.comment.lower()]

    assert unserved
    assert not [each.name for each in unserved if not each.comment.endswith(NOT_SERVED)]


def test_every_served_call_says_whether_it_may_be_repeated() -> None:
    """A call says that it changes nothing, or how far it is idempotent. The stream is no call."""
    calls = [
        each for each in of("rpc") if NOT_SERVED not in each.comment and each.name != "QueueService.StreamFlowRuns"
    ]

    assert not [each.name for each in calls if not re.search("Changes nothing|[Ii]dempotent", each.comment)]


def test_refusals_are_those_of_the_catalogue() -> None:
    """Every code and reason that a comment names is in the catalogue of refusals."""
    catalogue = {(code.name, refusal.reason()) for refusal, code in CODES.items()}
    named = {pair for each in elements() for pair in refusals_in(each.comment)}

    assert named
    assert set() == named - catalogue


def test_every_refusal_is_in_a_comment() -> None:
    """Every refusal of the catalogue is named by a comment of the contract."""
    named = {reason for each in elements() for _, reason in refusals_in(each.comment)}

    assert set() == {refusal.reason() for refusal in CODES} - named
