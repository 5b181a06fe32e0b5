"""The contract as protoc reads it from protos/: descriptors, and the comment above each element."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

ROOT: Final = Path(__file__).parents[2]
PROTOS: Final = ROOT / "protos"

# The field numbers by which a source location spells its path.
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_FIELD, _NESTED, _NESTED_ENUM, _ONEOF = 2, 3, 4, 8
_VALUE, _RPC = 2, 2


@dataclass(frozen=True, slots=True)
class Element:
    """One element of the contract: what it is, its full name without the package, and the comment above it."""

    kind: str
    name: str
    comment: str


@cache
def contract(*, comments: bool = False) -> FileDescriptorSet:
    """All files of the contract, in the order of their names."""
    names = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "contract.bin"
        includes = [f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
        options = [f"--descriptor_set_out={out}", *(["--include_source_info"] if comments else [])]
        assert protoc.main(["protoc", *includes, *options, *names]) == 0, "the contract does not compile"
        compiled = FileDescriptorSet.FromString(out.read_bytes())
    compiled.file.sort(key=lambda file: file.name)
    return compiled


def elements() -> list[Element]:
    """Every element of the contract with its comment, whose lines are joined."""
    return [element for file in contract(comments=True).file for element in _elements_of(file)]


def _elements_of(file: FileDescriptorProto) -> Iterator[Element]:
    comments = {
        tuple(location.path): " ".join(location.leading_comments.split()) for location in file.source_code_info.location
    }
    for kind, name, path in _paths_of(file):
        yield Element(kind, name, comments.get(path, ""))


def _paths_of(file: FileDescriptorProto) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for index, message in enumerate(file.message_type):
        yield from _in_message(message, message.name, (_MESSAGE, index))
    for index, enum in enumerate(file.enum_type):
        yield from _in_enum(enum, enum.name, (_ENUM, index))
    for index, service in enumerate(file.service):
        yield "service", service.name, (_SERVICE, index)
        for place, rpc in enumerate(service.method):
            yield "rpc", f"{service.name}.{rpc.name}", (_SERVICE, index, _RPC, place)


def _in_message(
    message: DescriptorProto, name: str, path: tuple[int, ...]
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    if message.options.map_entry:
        return
    yield "message", name, path
    for index, field in enumerate(message.field):
        yield "field", f"{name}.{field.name}", (*path, _FIELD, index)
    for index, oneof in enumerate(message.oneof_decl):
        # An optional scalar is compiled into a oneof that nobody wrote.
        if not oneof.name.startswith("_"):
            yield "oneof", f"{name}.{oneof.name}", (*path, _ONEOF, index)
    for index, nested in enumerate(message.nested_type):
        yield from _in_message(nested, f"{name}.{nested.name}", (*path, _NESTED, index))
    for index, enum in enumerate(message.enum_type):
        yield from _in_enum(enum, f"{name}.{enum.name}", (*path, _NESTED_ENUM, index))


def _in_enum(enum: EnumDescriptorProto, name: str, path: tuple[int, ...]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield "enum", name, path
    for index, value in enumerate(enum.value):
        yield "value", f"{name}.{value.name}", (*path, _VALUE, index)
