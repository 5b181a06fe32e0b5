"""gen/python is what protos/ makes of it. Descriptors are compared, so no plugin of protoc is needed."""

import importlib
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from tests.protos.contract import ROOT, contract

GENERATED = ROOT / "gen" / "python"
NAMES = [file.name for file in contract().file]


def without_json_names(file: FileDescriptorProto) -> FileDescriptorProto:
    """The file as the generated modules embed it: JSON names follow from the names, and are left out."""
    plain = FileDescriptorProto()
    plain.CopyFrom(file)
    for message in plain.message_type:
        _forget_json_names(message)
    return plain


def _forget_json_names(message: DescriptorProto) -> None:
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        _forget_json_names(nested)


@pytest.mark.parametrize("name", NAMES)
def test_modules_are_current(name: str) -> None:
    """The descriptor in each generated module is that of its proto."""
    (compiled,) = (file for file in contract().file if file.name == name)
    module = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")

    assert without_json_names(compiled) == FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_service.proto")])
def test_stubs_are_current(name: str) -> None:
    """Each service has a stub and a servicer with exactly its rpcs."""
    (compiled,) = (file for file in contract().file if file.name == name)
    module = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2_grpc")

    for service in compiled.service:
        servicer = getattr(module, f"{service.name}Servicer")
        assert {rpc.name for rpc in service.method} == {each for each in vars(servicer) if not each.startswith("_")}
        assert hasattr(module, f"{service.name}Stub")


def test_nothing_else_is_generated() -> None:
    """Each proto has its modules with their types, and no module is left of a proto that is gone."""
    expected = set()
    for name in NAMES:
        stem = name.removesuffix(".proto")
        kinds = ["_pb2", "_pb2_grpc"] if stem.endswith("_service") else ["_pb2"]
        expected |= {Path(f"{stem}{kind}{ending}") for kind in kinds for ending in (".py", ".pyi")}

    found = {path.relative_to(GENERATED) for path in GENERATED.rglob("*_pb2*.py*") if path.suffix != ".pyc"}

    assert expected == found
