"""A run on a cluster, as those who look after the cluster see it: in Ray's dashboard, and in what Prometheus reads."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

from head import started_head
from long_run import PATIENCE_S
from object_store import free_port
from support import start_cli, tiny_job, wait_until, write_job, write_rows

from raytrain_nlp.cluster.run_metrics import EVENTS, FIGURES

WAITS = """
import time
from pathlib import Path
from transformers import TrainerCallback

class Waits(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        while state.global_step == 5 and not Path("GO").exists():
            time.sleep(0.1)
"""


def test_the_dashboard_and_prometheus_have_the_run(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 64)
    (tmp_path / "waits.py").write_text(WAITS.replace("GO", str(tmp_path / "go")))
    job = tiny_job(
        tmp_path, "seen", training={"max_steps": 8, "logging_steps": 1}, trainer={"callbacks": ["waits:Waits"]}
    )
    metrics = free_port()
    with started_head("--num-cpus=6", f"--metrics-export-port={metrics}") as head:
        token = Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
        driver = start_cli(
            "train", write_job(job, tmp_path / "job.json"), env=head.env, cwd=tmp_path, address=head.address
        )

        def ask(url: str) -> str:
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read().decode()

        def exported() -> dict[str, float]:
            assert driver.poll() is None, driver.communicate()
            lines = re.findall(
                r'^ray_raytrain_nlp_(\w+)\{.*run="seen".*\} (\S+)$', ask(f"http://127.0.0.1:{metrics}"), re.M
            )
            return {name: float(value) for name, value in lines}

        wait_until(lambda: exported().get("step") == 5, 400, "the metrics of step 5")
        found = exported()
        assert {"loss", "learning_rate", "tokens_per_second", "step_seconds", "data_wait_share"} <= found.keys()
        assert (
            found["workers"] == 2
            and found["restarts"] == 0
            and found.keys() <= {name for name, _ in FIGURES.values()} | set(EVENTS)
        )
        runs = json.loads(ask(f"{head.dashboard}/api/train/v2/runs/v1"))["train_runs"]
        assert [(run["name"], run["status"]) for run in runs] == [("seen", "RUNNING")]
        (tmp_path / "go").touch()
        _, err = driver.communicate(timeout=PATIENCE_S)
        assert driver.returncode == 0, err

        def ended() -> bool:
            runs = json.loads(ask(f"{head.dashboard}/api/train/v2/runs/v1"))["train_runs"]
            return [run["status"] for run in runs] == ["FINISHED"]

        wait_until(ended, 60, "the dashboard says that the run has finished")
