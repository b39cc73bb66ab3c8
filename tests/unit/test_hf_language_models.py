"""Commands of run_fim.py and run_plm.py become jobs."""

from __future__ import annotations

from test_from_hf import ONE_CPU, problems, translate

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


def test_plm_wikitext() -> None:
    """Permutation language modeling: blocks of 512 tokens, as the script has them by default."""
    base = (
        "python run_plm.py --model_name_or_path=xlnet-base-cased --dataset_name wikitext --dataset_config_name "
        "wikitext-2-raw-v1 --per_device_train_batch_size 8 --per_device_eval_batch_size 8 --do_train --do_eval "
        "--output_dir /tmp/test-plm"
    )
    job, notes = translate(base)
    assert job == {
        "name": "test-plm",
        "storage_path": "/tmp",
        "task": {"type": "permutation-lm", "block_size": 512},
        "model": {"name_or_path": "xlnet-base-cased"},
        "data": {
            "train": "hf://wikitext/wikitext-2-raw-v1:train",
            "validation": "hf://wikitext/wikitext-2-raw-v1:validation",
        },
        "training": {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8},
        "workers": ONE_CPU,
    }
    assert notes == {}
    job, notes = translate(f"{base} --line_by_line --plm_probability 0.2 --max_span_length 3 --max_seq_length 64")
    assert job["task"] == {
        "type": "permutation-lm",
        "line_by_line": True,
        "plm_probability": 0.2,
        "max_span_length": 3,
    }
    assert job["data"]["max_length"] == 64 and notes == {}


def test_plm_from_scratch() -> None:
    """The script has one kind of model, which its command does not name."""
    rest = "--tokenizer_name t --train_file t.txt --validation_file v.txt --do_eval --output_dir a/b"
    job, _ = translate(f"run_plm.py --config_overrides d_model=64,n_layer=2 {rest}")
    assert job["model"] == {"tokenizer": "t", "config": {"model_type": "xlnet", "d_model": 64, "n_layer": 2}}
    assert translate(f"run_plm.py {rest}")[0]["model"]["config"] == {"model_type": "xlnet"}
    assert problems(f"run_plm.py --model_type xlnet {rest}")[0].startswith("--model_type: unknown flag of run_plm.py")
