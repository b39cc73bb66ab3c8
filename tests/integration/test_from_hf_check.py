"""Ten commands of the READMEs of transformers' examples become jobs that pass `check`, with local rows and a small
model of the same kind in place of the hub's."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

ROWS = 40
COMMANDS = [
    "run_glue.py --model_name_or_path bert --task_name mrpc --do_train --do_eval --max_seq_length 128 "
    "--per_device_train_batch_size 32 "
    "--learning_rate 2e-5 --num_train_epochs 3 --output_dir out/mrpc/",
    "run_glue.py --model_name_or_path bert --dataset_name imdb --do_train --do_predict --max_seq_length 128 "
    "--per_device_train_batch_size 32 "
    "--learning_rate 2e-5 --num_train_epochs 3 --output_dir out/imdb/",
    "run_clm.py --model_name_or_path gpt2 --dataset_name wikitext --dataset_config_name wikitext-2-raw-v1 "
    "--per_device_train_batch_size 8 "
    "--per_device_eval_batch_size 8 --do_train --do_eval --output_dir out/test-clm",
    "run_clm.py --model_name_or_path gpt2 --train_file wikitext.txt --validation_file wikitext.txt "
    "--per_device_train_batch_size 8 "
    "--per_device_eval_batch_size 8 --do_train --do_eval --output_dir out/test-clm",
    'run_clm.py --model_type gpt2 --tokenizer_name gpt2 --config_overrides="n_embd=64,n_head=4,resid_pdrop=0.2" '
    "--train_file wikitext.txt --do_train "
    "--output_dir out/scratch",
    "run_mlm.py --model_name_or_path bert --dataset_name wikitext --dataset_config_name wikitext-2-raw-v1 "
    "--per_device_train_batch_size 8 "
    "--per_device_eval_batch_size 8 --do_train --do_eval --output_dir out/test-mlm",
    "run_mlm.py --model_name_or_path bert --train_file wikitext.txt --validation_file wikitext.txt --line_by_line "
    "--do_train --do_eval --output_dir out/lines",
    "run_summarization.py --model_name_or_path t5 --do_train --do_eval --dataset_name cnn_dailymail --dataset_config "
    '"3.0.0" '
    '--source_prefix "summarize: " --output_dir out/tst-summarization --per_device_train_batch_size=4 '
    "--per_device_eval_batch_size=4 "
    "--overwrite_output_dir --predict_with_generate",
    "run_summarization.py --model_name_or_path t5 --do_train --do_eval --train_file articles.csv --validation_file "
    "articles.csv "
    '--source_prefix "summarize: " --output_dir out/csv --per_device_train_batch_size=4 --per_device_eval_batch_size=4 '
    "--predict_with_generate",
    "run_translation.py --model_name_or_path t5 --do_train --do_eval --source_lang en --target_lang ro "
    '--source_prefix "translate English to Romanian: " --dataset_name wmt16 --dataset_config_name ro-en --output_dir '
    "out/tst-translation "
    "--per_device_train_batch_size=4 --per_device_eval_batch_size=4 --overwrite_output_dir --predict_with_generate",
]
TEXT = "The house is old, said number {i}. It stands near the river since the year {i}."
LOCAL: dict[str, dict[str, Any]] = {  # the columns of each dataset of the hub
    "mrpc": {"sentence1": TEXT, "sentence2": TEXT, "label": 0, "idx": 0},
    "imdb": {"text": TEXT, "label": 0},
    "wikitext": {"text": TEXT},
    "cnn_dailymail": {"article": TEXT, "highlights": TEXT, "id": ""},
    "wmt16": {"translation": {"en": TEXT, "ro": TEXT}},
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": (
        "encoder",
        "AutoModelForMaskedLM",
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    ),
    "gpt2": ("decoder", "AutoModelForCausalLM", {"n_embd": 32, "n_layer": 1, "n_head": 2}),
    "t5": (
        "seq2seq",
        "AutoModelForSeq2SeqLM",
        {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of each dataset, and a small model of each kind, in the folder the commands are given in."""
    import transformers

    from raytrain_nlp.config.model import TokenizerTraining
    from raytrain_nlp.modeling.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("from-hf")

    def filled(value: Any, i: int) -> Any:
        if isinstance(value, dict):
            return {key: filled(part, i) for key, part in value.items()}
        return value.format(i=i) if isinstance(value, str) else i % 2

    for name, row in LOCAL.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(filled(row, i)) + "\n" for i in range(ROWS)))
    texts = [TEXT.format(i=i) for i in range(ROWS)]
    (folder / "wikitext.txt").write_text("\n".join(texts))
    (folder / "articles.csv").write_text(
        "text,summary\n" + "".join(f'"{text}",short {i}\n' for i, text in enumerate(texts))
    )
    for name, (kind, auto_model, config) in MODELS.items():
        cached = train_tokenizer(texts, TokenizerTraining(vocab_size=300), kind, name, folder / "tokenizers", None)
        tokenizer = transformers.AutoTokenizer.from_pretrained(cached)
        tokenizer.save_pretrained(folder / name)
        config = transformers.AutoConfig.for_model(name, vocab_size=len(tokenizer), **config)
        getattr(transformers, auto_model).from_config(config).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    "command",
    COMMANDS,
    ids=lambda command: Path(command.partition("--output_dir ")[2].split()[0]).name + "-" + command.split(".")[0],
)
def test_job_of_a_readmes_command_passes_check(folder: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    import raytrain_nlp

    monkeypatch.chdir(folder)
    job, _ = raytrain_nlp.from_hf(shlex.split(command))
    for split in ("train", "validation"):
        source = job["data"].get(split, "")
        if source.startswith("hf://"):
            job["data"][split] = next(f"{name}.jsonl" for name in LOCAL if name in source)
    report = raytrain_nlp.check(job)
    assert report.rows["train"] > 0 and report.total_steps > 0 and report.parameters > 0
    assert ("validation" in report.rows) == ("--do_eval" in command)
    whole = "run_clm" in command or ("run_mlm" in command and "line_by_line" not in command)
    assert report.rows["train"] == ROWS or whole  # blocks of a stream
    assert report.bad_rows == dict.fromkeys(report.rows, 0)
