"""The stock pattern of Ray's documentation: a `TorchTrainer` in a function trainable of Ray Tune, plain Hugging Face
`Trainer` in its workers.

Started by sweep.py with its settings as JSON. The last line of standard output is one JSON object. Nothing of
`raytrain_nlp` is imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parent)


def loop(config: dict[str, Any]) -> None:
    sys.path.insert(0, HERE)
    import peer
    import ray.train
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

    peer.join_deepspeed()
    out = os.path.join(config["folder"], f"out-{config['rate']}")
    arguments = TrainingArguments(
        output_dir=out,
        learning_rate=config["rate"],
        per_device_train_batch_size=config["batch"],
        max_steps=config["steps"],
        eval_strategy="steps",
        eval_steps=config["steps"],
        save_strategy="no",
        use_cpu=True,
        deepspeed=config["deepspeed"],
        report_to=[],
        disable_tqdm=True,
        seed=config["seed"],
        average_tokens_across_devices=False,
    )
    set_seed(config["seed"])
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
    recorder = peer.Recorder()
    trainer = Trainer(
        model=peer.build_model(given, tokenizer, len(names)),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=peer.compute_metrics,
        callbacks=[recorder],
    )
    trainer.train()
    trainer.save_model(os.path.join(out, "model"))
    if ray.train.get_context().get_world_rank() == 0:
        Path(config["folder"], f"first-{config['rate']}").write_text(str(recorder.marks["first step"] / 1000))


def trial(config: dict[str, Any]) -> None:
    import ray.train
    import ray.tune
    from ray.train.torch import TorchTrainer

    started = time.time()
    TorchTrainer(
        loop,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=config["workers"], resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name=f"trial-{config['rate']}", storage_path=config["folder"]),
    ).fit()
    ray.tune.report({"to_first_step": float(Path(config["folder"], f"first-{config['rate']}").read_text()) - started})


def main() -> None:
    import ray
    from ray import tune

    config = json.loads(sys.argv[1])
    ray.init(address="local", num_cpus=config["workers"] + 2, include_dashboard=False, log_to_driver=False)
    config["rate"] = tune.grid_search(config.pop("rates"))
    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": 0.5}),
        param_space=config,
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=config["folder"], name="tune", verbose=0),
    )
    results = tuner.fit()
    print(json.dumps({"starts": [result.metrics["to_first_step"] for result in results]}), flush=True)


if __name__ == "__main__":
    main()
