"""Writes the contract as it is now to published.txtpb: `python -m tests.protos.publish`, with every release."""

from pathlib import Path
from typing import Final

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.protos.contract import contract

PUBLISHED: Final = Path(__file__).with_name("published.txtpb")


def published() -> FileDescriptorSet:
    """The contract as it was published last."""
    return text_format.Parse(PUBLISHED.read_text(), FileDescriptorSet())


def main() -> None:
    PUBLISHED.write_text(text_format.MessageToString(contract()))


if __name__ == "__main__":
    main()
