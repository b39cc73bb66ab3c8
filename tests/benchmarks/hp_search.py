"""`Trainer.hyperparameter_search(backend="ray")` on the rows and learning rates of sweep.py, one trial after another.

Started by sweep.py with its settings as JSON. The last line of standard output is one JSON object. Nothing of
`raytrain_nlp` is imported. A trial of it is one process: it takes the rows of all workers in one batch and both cores
as threads, and shards nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parent)


def build_trainer(config: dict[str, Any]) -> Any:
    import peer
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    given = peer.PeerArguments(
        model=config["tokenizer"],
        config=json.dumps(config["config"]),
        train=config["rows"],
        validation=config["rows"],
        text_columns=config["columns"],
    )
    tokenizer = AutoTokenizer.from_pretrained(config["tokenizer"])
    names = peer.label_names(given)
    rows = peer.load_rows(config["rows"], given, tokenizer, names)
    arguments = TrainingArguments(
        output_dir=config["folder"],
        per_device_train_batch_size=config["batch"] * config["workers"],
        max_steps=config["steps"],
        eval_strategy="steps",
        eval_steps=config["steps"],
        save_strategy="no",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=config["seed"],
    )
    return Trainer(
        model_init=lambda: peer.build_model(given, tokenizer, len(names)),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=peer.compute_metrics,
        callbacks=[build_recorder(config["folder"])],
    )


def build_recorder(folder: str) -> Any:
    """A callback that writes when a trial's first step ended."""
    from transformers import TrainerCallback

    class FirstStep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                Path(folder, f"first-{args.learning_rate}").write_text(str(time.time()))

    return FirstStep()


def main() -> None:
    sys.path.insert(0, HERE)
    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    import ray
    from ray import tune

    config = json.loads(sys.argv[1])
    os.environ["OMP_NUM_THREADS"] = str(config["workers"])
    ray.init(address="local", num_cpus=config["workers"], include_dashboard=False, log_to_driver=False)
    began = time.time()
    best = build_trainer(config).hyperparameter_search(
        hp_space=lambda _: {"learning_rate": tune.grid_search(config["rates"])},
        n_trials=1,
        backend="ray",
        direction="minimize",
        compute_objective=lambda metrics: metrics["eval_loss"],
        resources_per_trial={"cpu": config["workers"]},
        storage_path=config["folder"],
        name="tune",
    )
    trials = best.run_summary.trials
    firsts = sorted(float(path.read_text()) for path in Path(config["folder"]).glob("first-*"))
    begins = sorted(trial.last_result["timestamp"] - trial.last_result["time_total_s"] for trial in trials)
    print(
        json.dumps(
            {
                "starts": [first - start for first, start in zip(firsts, begins)],
                "first": firsts[0] - began,
                "trials": len(trials),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
