"""Generates gen/python from protos/. One command, no options."""

import shutil
import sys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).parent
PACKAGE = '"""Generated from protos/ by protos/generate.py; never edited."""\n'


def generate(out: Path) -> int:
    """Replace `out`/flowrun by the Python modules of every proto, with their types; return protoc's exit code."""
    shutil.rmtree(out / "flowrun", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    protos = sorted(HERE.rglob("*.proto"))
    services = [path for path in protos if path.stem.endswith("_service")]
    failed = _protoc(out, ["python", "mypy"], protos) or _protoc(out, ["grpc_python", "mypy_grpc"], services)
    for folder in {path.relative_to(HERE).parent for path in protos}:
        for package in [folder, *folder.parents][:-1]:
            (out / package / "__init__.py").write_text(PACKAGE)
    (out / "flowrun" / "py.typed").touch()
    return failed


def _protoc(out: Path, plugins: Iterable[str], protos: Iterable[Path]) -> int:
    includes = [f"-I{HERE}", f"-I{files('grpc_tools') / '_proto'}"]
    outputs = [f"--{plugin}_out={'quiet:' if 'mypy' in plugin else ''}{out}" for plugin in plugins]
    return int(protoc.main(["protoc", *includes, *outputs, *(str(path.relative_to(HERE)) for path in protos)]))


if __name__ == "__main__":
    sys.exit(generate(HERE.parent / "gen" / "python"))
