"""What `import penstock` gives, and what it costs."""

import subprocess
import sys

import pytest

import penstock


@pytest.mark.parametrize("name", ["flow", "get_logger", "current_flow_run", "Client", "AsyncClient", "__version__"])
def test_public_names_are_loaded_when_asked_for(name: str) -> None:
    """Each name is there, and listed."""
    assert getattr(penstock, name)
    assert name in dir(penstock)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    """As for any module."""
    with pytest.raises(AttributeError, match="module 'penstock' has no attribute 'fiow'"):
        penstock.fiow  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Nor does decorating a flow: an author's module is imported often."""
    heavy = ("grpc", "google", "sqlalchemy", "pydantic", "opentelemetry", "asyncio")
    script = (
        f"import sys, penstock; before = [m for m in sys.modules if m.split('.')[0] in {heavy[:5]!r}];"
        "from penstock import flow; flow(lambda: None);"
        f"print(before, [m for m in sys.modules if m.split('.')[0] in {heavy!r}])"
    )

    output = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    ).stdout

    assert output.strip() == "[] []"
