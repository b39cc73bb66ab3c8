"""The command lines of transformers' examples for the scripts that are read: each becomes a job that passes `check`
with a small model of its family; most of each script train, and the metric that the original test reads is there."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from hf_commands import FAMILIES, ROWS, SHORT, TEXT, commands, local_job, write_inputs
from support import with_mlflow

from raytrain_nlp.errors import InputError

COMMANDS = commands()
SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim"), 32),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
            "num_encoder_layers",
            "num_decoder_layers",
        ),
        2,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "num_encoder_attention_heads",
            "num_decoder_attention_heads",
            "n_heads",
        ),
        2,
    ),
    **dict.fromkeys(
        ("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "d_inner", "hidden_dim", "dim_feedforward"),
        64,
    ),
    "d_kv": 16,
    "d_head": 16,
    "dim": 32,
    "rotary_dim": 8,
    "max_position_embeddings": 130,
    "n_positions": 128,
    "block_sizes": [1, 1],
    "decoder_layerdrop": 0.0,
}
OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "big_bird": {"attention_type": "original_full"},
    "fsmt": {"langs": ["en", "ro"]},
    "bigbird_pegasus": {"attention_type": "original_full"},
}
TRAINED: dict[str, str] = {  # command -> the metric that its original test reads
    "test glue": "eval_accuracy",
    "readme glue mrpc": "eval_f1",
    "readme glue stsb": "eval_pearson",
    "readme xnli": "eval_accuracy",
    "readme classification": "eval_accuracy",
    "readme classification files": "eval_f1_micro",
    "test clm no trainer": "eval_perplexity",
    "test translation no trainer": "eval_bleu",
    "test ner": "eval_f1",
    "readme ner": "eval_precision",
    "test ner no trainer": "eval_recall",
    "test swag": "eval_accuracy",
    "readme swag": "eval_accuracy",
    "test clm": "eval_perplexity",
    "readme clm": "eval_perplexity",
    "test clm overrides": "train_loss",
    "test mlm": "eval_perplexity",
    "readme mlm": "eval_perplexity",
    "readme mlm lines": "eval_perplexity",
    "test summarization": "eval_rougeLsum",
    "readme summarization": "eval_rouge1",
    "readme summarization files": "eval_rouge2",
    "test translation": "eval_bleu",
    "readme translation t5": "eval_bleu",
    "readme translation mbart": "eval_bleu",
}
NEEDS = {"ext adamw_bnb_8bit": "bitsandbytes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Rows, DeepSpeed files and models; the commands are given there."""
    import transformers

    from raytrain_nlp.config.model import TokenizerTraining
    from raytrain_nlp.modeling.tokenizer import train_tokenizer

    folder, before = tmp_path_factory.mktemp("examples"), Path.cwd()
    write_inputs(folder)
    with_mlflow(folder / "out")
    texts = [text.format(i=i) for i in range(ROWS) for text in (TEXT, SHORT)]
    trained = {name for command in TRAINED for name in FAMILIES if f"--model_name_or_path {name} " in COMMANDS[command]}
    for family, kind in FAMILIES.items():
        cached = train_tokenizer(texts, TokenizerTraining(vocab_size=300), kind, kind, folder / "tokenizers", None)
        tokenizer = transformers.AutoTokenizer.from_pretrained(cached)
        tokenizer.save_pretrained(folder / family)
        config = _small_config(family, tokenizer)
        config.save_pretrained(folder / family)
        if family in trained:
            made = (
                transformers.AutoModelForSeq2SeqLM
                if kind == "seq2seq"
                else transformers.AutoModelForCausalLM
                if kind == "decoder"
                else transformers.AutoModel
            )
            made.from_config(config).save_pretrained(folder / family)
    os.chdir(folder)
    yield folder
    os.chdir(before)


def _small_config(family: str, tokenizer: Any) -> Any:
    from transformers import CONFIG_MAPPING

    defaults = CONFIG_MAPPING[family]().to_dict()
    size = len(tokenizer)
    ids = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id") if name in defaults
    }
    words = {name: size for name in ("vocab_size", "src_vocab_size", "tgt_vocab_size", "n_words") if name in defaults}
    starts = {"decoder_start_token_id": tokenizer.pad_token_id} if FAMILIES[family] == "seq2seq" else {}
    return CONFIG_MAPPING[family](
        **{key: value for key, value in SMALL.items() if key in defaults},
        **words,
        **ids,
        **starts,
        **OWN.get(family, {}),
    )


def job_of(name: str) -> dict[str, Any]:
    import raytrain_nlp

    job, _ = raytrain_nlp.from_hf(shlex.split(COMMANDS[name]))
    return local_job(job)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_passes_check(folder: Path, name: str) -> None:
    import raytrain_nlp

    job = job_of(name)
    if name in NEEDS:
        with pytest.raises(InputError, match=NEEDS[name]):
            raytrain_nlp.check(job, worker_memory="80GB")
        return
    report = raytrain_nlp.check(job, worker_memory="80GB")  # of whatever machine: some are for GPUs
    assert (
        report.rows["train"] > 0
        and report.total_steps > 0
        and report.parameters > 0
        and not any(report.bad_rows.values())
    )


@pytest.mark.parametrize("name", TRAINED)
def test_command_trains_and_gives_the_metric_of_its_test(folder: Path, name: str) -> None:
    import raytrain_nlp

    job = job_of(name)
    job["name"], job["training"] = name.replace(" ", "-"), {**job.get("training", {}), "max_steps": 3}
    job["workers"] = {"num_workers": 2 if "readme" in name else 1, "use_gpu": False, "max_failures": 0}
    result = raytrain_nlp.train(job, overwrite=True)
    assert result.global_step == 3 and math.isfinite(result.metrics[TRAINED[name]])
