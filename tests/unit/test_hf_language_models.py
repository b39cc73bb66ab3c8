"""Commands of run_fim.py become jobs."""

from __future__ import annotations

from test_from_hf import translate

from raytrain_nlp.cli.from_hf.language_models import LONGEST


def test_fim_wikitext() -> None:
    """Filling in the middle: run_fim.py's rate where none is given, its seed; nothing of it at a rate of 0."""
    base = (
        "python run_fim.py --model_name_or_path gpt2 --dataset_name wikitext --dataset_config_name wikitext-2-raw-v1 "
        "--per_device_train_batch_size 8 --per_device_eval_batch_size 8 --do_train --do_eval --output_dir /tmp/test-clm"
    )
    job, notes = translate(f"{base} --fim_rate 0.5 --fim_spm_rate 0.2")
    assert job["task"] == {"type": "causal-lm", "block_size": LONGEST["fim"], "fim_rate": 0.5, "fim_spm_rate": 0.2}
    assert set(notes) == {"--block_size"} and translate(base)[0]["task"]["fim_rate"] == 0.5
    job, _ = translate(f"{base} --seed 7 --truncate_or_pad false --fim_middle_token <MID> --block_size 64")
    assert (job["seed"], job["task"]) == (
        7,
        {
            "type": "causal-lm",
            "block_size": 64,
            "fim_rate": 0.5,
            "fim_seed": 7,
            "truncate_or_pad": False,
            "fim_middle_token": "<MID>",
        },
    )
    job, notes = translate(f"{base} --fim_rate 0 --fim_spm_rate 0.2 --pad_token <p>")
    assert job["task"] == {"type": "causal-lm", "block_size": LONGEST["fim"]}
    assert set(notes) == {"--block_size", "--fim_rate", "--fim_spm_rate", "--pad_token"}
