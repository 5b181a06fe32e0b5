"""collector.yaml: its pipelines are made of what it defines."""

from pathlib import Path

import yaml

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "collector.yaml").read_text())


def test_pipelines_are_made_of_what_is_defined() -> None:
    """Every component of a pipeline is defined, and every defined one is in a pipeline."""
    for kind in ("receivers", "exporters"):
        used = {name for pipeline in CONFIG["service"]["pipelines"].values() for name in pipeline[kind]}
        assert used == set(CONFIG[kind])


def test_spans_are_received() -> None:
    """There is a pipeline for spans, which is what the processes export."""
    assert "otlp" in CONFIG["service"]["pipelines"]["traces"]["receivers"]
