"""A model of MLflow's registry behind `mlflow models serve`, asked by real requests; truth is the model alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
import transformers
from mlflow import MlflowClient
from object_store import free_port
from support import wait_until

from raytrain_nlp.config.cluster import TrackingConfig
from raytrain_nlp.tracking.address import default_uri
from raytrain_nlp.tracking.registry import register_model

TEXTS = ["sort the rows", "train a model", "rows of a model"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as `export` leaves it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]
    folder = tmp_path / "model"
    transformers.BertTokenizerFast(vocab={word: place for place, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}, initializer_range=1.0,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_registered_model_answers_requests(tmp_path: Path, model: Path) -> None:
    version = register_model(TrackingConfig(), tmp_path, None, model, "text-classification", "served")
    client = MlflowClient(tracking_uri=default_uri(tmp_path))
    experiment = client.get_experiment_by_name("raytrain_nlp")
    (logged,) = client.search_logged_models([experiment.experiment_id])
    assert logged.artifact_location.startswith((tmp_path / "mlartifacts").as_uri()), "not in the current directory"
    assert (logged.name, logged.model_type, str(logged.status)) == ("served", "text-classification", "READY")
    assert client.get_model_version("served", version).source == logged.artifact_location
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/served/{version}", "--env-manager",
        "local", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it starts uvicorn
    environment = {**os.environ, "PATH": programs, "MLFLOW_TRACKING_URI": default_uri(tmp_path)}
    server = subprocess.Popen(command, env=environment, start_new_session=True)

    def is_up() -> bool:
        assert server.poll() is None, "the server has ended"
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).status == 200
        except OSError:
            return False

    try:
        wait_until(is_up, 240, "the server answers")
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": TEXTS}).encode(),
            {"Content-Type": "application/json"},
        )
        answer = json.load(urllib.request.urlopen(request, timeout=60))["predictions"]
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    alone = transformers.pipeline("text-classification", model=str(model))(TEXTS)
    assert [row["label"] for row in answer] == [row["label"] for row in alone]
    assert [row["score"] for row in answer] == pytest.approx([row["score"] for row in alone], abs=1e-5)
