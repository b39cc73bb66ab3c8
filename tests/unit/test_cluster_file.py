"""The cluster file holds by Ray's own schema, installs what this package is tested with, and `check --cluster` says
what a job takes of it.
"""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from raytrain_nlp.cluster.cluster_file import plan_nodes
from raytrain_nlp.config import TrainJob, load_job
from raytrain_nlp.errors import InputError

FILE = Path(__file__).parents[2] / "cluster.yaml"


def job_of(**workers: Any) -> TrainJob:
    tiny = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    return load_job(
        {
            "task": {"type": "text-classification", "text_columns": ["text"]},
            "model": {"config": tiny, "tokenizer": "train"},
            "data": {"train": "train.jsonl"},
            "workers": workers,
        }
    )


def test_the_file_is_one_of_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(FILE.read_text()))
    validate_config(config)
    kinds = config["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0} and all(kind["min_workers"] == 0 for kind in kinds.values())
    assert [name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]] == ["gpu-spot"]


def test_nodes_get_versions_this_package_takes() -> None:
    """Every pin is one that pyproject.toml allows."""
    text = " ".join(yaml.safe_load(FILE.read_text())["setup_commands"])
    pins = {name.split("[")[0]: version for name, version in re.findall(r"'?([\w\[\],-]+)==([\w.]+)", text)}
    allowed = {
        requirement.name: requirement.specifier
        for requirement in map(Requirement, requires("raytrain-nlp"))
        if requirement.marker is None
    }
    assert {"torch", "ray", "transformers", "deepspeed", "accelerate", "datasets", "peft", "mlflow"} == set(pins)
    assert not [name for name, version in pins.items() if version not in allowed[name]]


@pytest.mark.parametrize(
    ("workers", "nodes"),
    [
        ({"num_workers": 4, "use_gpu": True}, {"gpu": 1}),  # 4 GPUs, and the feeds on the same node's 48 CPUs
        ({"num_workers": 32, "use_gpu": True}, {"gpu": 4, "gpu-spot": 4}),
        (
            {"num_workers": 6, "resources_per_worker": {"CPU": 8}},
            {"cpu": 4},
        ),  # two on a node of 16; their six feeds need the fourth
    ],
)
def test_a_job_is_told_its_nodes(workers: dict[str, Any], nodes: dict[str, int]) -> None:
    found = plan_nodes(job_of(**workers), str(FILE))
    on_demand = {**found}
    if workers.get("use_gpu") and workers["num_workers"] == 4:  # both types have the same nodes
        on_demand = {"gpu": sum(found.values())}
    assert on_demand == nodes


@pytest.mark.parametrize(
    ("workers", "line"),
    [
        (
            {"num_workers": 1, "use_gpu": True, "resources_per_worker": {"GPU": 8}},
            "holds a worker of {CPU: 1, GPU: 8} (gpu: {CPU: 48, GPU: 4} x 4; ",
        ),
        (
            {"num_workers": 33, "use_gpu": True},
            "workers.num_workers: 33 workers of {CPU: 1, GPU: 1} with their feeds need more nodes than",
        ),
    ],
)
def test_a_job_that_fits_nowhere_is_refused(workers: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        plan_nodes(job_of(**workers), str(FILE))
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [", "is no cluster file of Ray's"),
        ("- 1", "is not a mapping"),
        (
            FILE.read_text().replace("max_workers: 12 ", "max_workers: many "),
            "max_workers: 'many' is not of type 'integer'",
        ),
        (FILE.read_text().replace("resources: {CPU: 16}", "resources: {}"), "says no resources of cpu"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        plan_nodes(job_of(num_workers=1), str(tmp_path / "cluster.yaml"))
    assert line in str(caught.value) and "\n" not in str(caught.value)
