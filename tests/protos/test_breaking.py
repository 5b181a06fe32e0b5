"""Whoever was built on the published contract can still speak to whoever is built on the present one."""

from collections.abc import Callable, Iterator

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from tests.protos.contract import contract
from tests.protos.publish import published


def breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """What was published and is there no more, or is something else now. Additions break nobody."""
    present = dict(_promises(new))
    return [
        f"{place}: {promise} became {present.get(place, 'nothing')}"
        for place, promise in _promises(old)
        if present.get(place) != promise
    ]


def _promises(files: FileDescriptorSet) -> Iterator[tuple[str, str]]:
    """Each element by what identifies it on the wire or in code, with all that others rely on."""
    for file in files.file:
        for message in file.message_type:
            yield from _of_message(message, f"{file.name} {message.name}")
        for enum in file.enum_type:
            yield from _of_enum(enum, f"{file.name} {enum.name}")
        for service in file.service:
            for rpc in service.method:
                streaming = f"{'stream ' * rpc.client_streaming}, {'stream ' * rpc.server_streaming}"
                yield f"{file.name} {service.name}.{rpc.name}", f"{rpc.input_type} {rpc.output_type} {streaming}"


def _of_message(message: DescriptorProto, place: str) -> Iterator[tuple[str, str]]:
    yield place, "message"
    for field in message.field:
        yield f"{place}.{field.number}", _of_field(field, message)
    for nested in message.nested_type:
        yield from _of_message(nested, f"{place}.{nested.name}")
    for enum in message.enum_type:
        yield from _of_enum(enum, f"{place}.{enum.name}")


def _of_field(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type)
    return f"{field.name} {kind} {FieldDescriptorProto.Label.Name(field.label)} {oneof}"


def _of_enum(enum: EnumDescriptorProto, place: str) -> Iterator[tuple[str, str]]:
    yield place, "enum"
    for value in enum.value:
        yield f"{place}.{value.number}", value.name


def test_nothing_published_is_broken() -> None:
    """Nothing that was published was removed, renumbered, renamed or retyped since."""
    assert not breaks(published(), contract())


def the_file(files: FileDescriptorSet, name: str) -> FileDescriptorProto:
    (file,) = (each for each in files.file if each.name == f"flowrun/v1/{name}.proto")
    return file


def remove_field(files: FileDescriptorSet) -> None:
    del the_file(files, "agent").message_type[0].field[1]


def rename_field(files: FileDescriptorSet) -> None:
    the_file(files, "agent").message_type[0].field[1].name = "title"


def renumber_field(files: FileDescriptorSet) -> None:
    the_file(files, "agent").message_type[0].field[1].number = 99


def retype_field(files: FileDescriptorSet) -> None:
    the_file(files, "agent").message_type[0].field[1].type = FieldDescriptorProto.TYPE_BYTES


def repeat_field(files: FileDescriptorSet) -> None:
    the_file(files, "agent").message_type[0].field[1].label = FieldDescriptorProto.LABEL_REPEATED


def remove_message(files: FileDescriptorSet) -> None:
    del the_file(files, "agent").message_type[0]


def remove_value(files: FileDescriptorSet) -> None:
    del the_file(files, "log").enum_type[0].value[1]


def rename_value(files: FileDescriptorSet) -> None:
    the_file(files, "log").enum_type[0].value[1].name = "LOG_LEVEL_TRACE"


def remove_rpc(files: FileDescriptorSet) -> None:
    del the_file(files, "queue_service").service[0].method[0]


def end_stream(files: FileDescriptorSet) -> None:
    the_file(files, "queue_service").service[0].method[0].client_streaming = False


def remove_file(files: FileDescriptorSet) -> None:
    files.file.remove(the_file(files, "project"))


@pytest.mark.parametrize(
    "change",
    [
        remove_field,
        rename_field,
        renumber_field,
        retype_field,
        repeat_field,
        remove_message,
        remove_value,
        rename_value,
        remove_rpc,
        end_stream,
        remove_file,
    ],
)
def test_what_breaks(change: Callable[[FileDescriptorSet], None]) -> None:
    """Each way to take back a promise is noticed."""
    changed = FileDescriptorSet()
    changed.CopyFrom(contract())

    change(changed)

    assert breaks(contract(), changed)


def test_what_does_not_break() -> None:
    """A field, a value, an rpc or a message more breaks nobody."""
    changed = FileDescriptorSet()
    changed.CopyFrom(contract())

    agent = the_file(changed, "agent")
    agent.message_type[0].field.add(name="zone", number=99, type=FieldDescriptorProto.TYPE_STRING)
    agent.message_type.add(name="Zone")
    the_file(changed, "log").enum_type[0].value.add(name="LOG_LEVEL_TRACE", number=99)
    the_file(changed, "queue_service").service[0].method.add(name="Pause")

    assert not breaks(contract(), changed)
