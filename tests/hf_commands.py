"""The command lines of the READMEs and tests of transformers' examples for the scripts that are read, with local
rows and small models of the same families in place of the hub's. Written from their flags; paths are relative to the
folder that `write_inputs` fills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
PAIRS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
FAMILIES = {  # family -> kind of its tokenizer
    **dict.fromkeys(
        (
            "bert",
            "distilbert",
            "roberta",
            "xlnet",
            "albert",
            "deberta",
            "deberta-v2",
            "electra",
            "flaubert",
            "funnel",
            "big_bird",
            "xlm-roberta",
        ),
        "encoder",
    ),
    **dict.fromkeys(("gpt2", "bloom", "gpt_neo", "gptj", "prophetnet", "blenderbot", "bigbird_pegasus"), "decoder"),
    **dict.fromkeys(("t5", "mt5", "marian", "mbart", "bart", "pegasus", "m2m_100", "fsmt"), "seq2seq"),
}
_README_GLUE = (
    "run_glue.py --model_name_or_path bert --task_name {task} --do_train --do_eval --max_seq_length 128 "
    "--per_device_train_batch_size 32 "
    "--learning_rate 2e-5 --num_train_epochs 3 --output_dir out/{task}/"
)
_MNLI = (
    "run_glue.py --model_name_or_path bert --task_name mnli --do_train --do_eval --max_seq_length 128 "
    "--per_device_train_batch_size 8 --learning_rate 2e-5 "
    "--num_train_epochs 3.0 --output_dir out/mnli_output/"
)
_QA = (
    "--per_device_train_batch_size 12 --learning_rate 3e-5 --num_train_epochs 2 --max_seq_length 384 --doc_stride 128 "
    "--output_dir out/debug_squad"
)
_OVERWRITE = (
    "--per_device_train_batch_size=4 --per_device_eval_batch_size=4 --overwrite_output_dir --predict_with_generate"
)
_RO = (
    "--source_lang en --target_lang ro --dataset_name wmt16 --dataset_config_name ro-en --output_dir "
    "out/tst-translation"
)


def commands() -> dict[str, str]:
    """Where a command stands -> the command."""
    return {**_of_readmes(), **_of_tests(), **_of_trainer_tests(), **_of_deepspeed_tests(), **_of_model_zoo()}


def _of_readmes() -> dict[str, str]:
    text = {"do_train": "--do_train --do_eval --per_device_train_batch_size 8 --per_device_eval_batch_size 8"}[
        "do_train"
    ]
    wiki, files = (
        "--dataset_name wikitext --dataset_config_name wikitext-2-raw-v1",
        "--train_file wikitext.txt --validation_file wikitext.txt",
    )
    t5 = "--source_prefix 'translate English to Romanian: '"
    found = {f"readme glue {task}": "python " + _README_GLUE.format(task=task) for task in GLUE}
    return found | {
        "readme glue fp16": f"python {_README_GLUE.format(task='mrpc')} --fp16",
        "readme glue imdb": "python run_glue.py --model_name_or_path bert --dataset_name imdb --do_train --do_predict "
        "--max_seq_length 128 "
        "--per_device_train_batch_size 32 --learning_rate 2e-5 --num_train_epochs 3 --output_dir out/imdb/",
        "readme glue launch": f"python -m torch.distributed.launch --nproc_per_node 8 "
        f"pytorch/text-classification/{_MNLI}",
        "readme glue torchrun": f"torchrun --nproc_per_node 8 pytorch/text-classification/{_MNLI}",
        "readme glue tpu": f"python xla_spawn.py --num_cores 8 text-classification/{_MNLI}",
        "readme glue accelerate": f"accelerate launch {_MNLI}",
        "readme xnli": "python run_xnli.py --model_name_or_path bert --language de --train_language en --do_train "
        "--do_eval --per_device_train_batch_size 32 --learning_rate 5e-5 --num_train_epochs 2.0 --max_seq_length 128 "
        "--output_dir out/debug_xnli/ --save_steps -1",
        "readme classification": "python run_classification.py --model_name_or_path bert --dataset_name "
        "amazon_reviews_multi --dataset_config_name en --shuffle_train_dataset --metric_name accuracy "
        "--text_column_name review_title,review_body,product_category --text_column_delimiter ' - ' "
        "--label_column_name stars --do_train --do_eval --max_seq_length 512 --per_device_train_batch_size 32 "
        "--learning_rate 2e-5 --num_train_epochs 1 --output_dir out/reviews/",
        "readme classification files": "python run_classification.py --model_name_or_path bert --train_file "
        "topics.jsonl --validation_file topics.jsonl --shuffle_train_dataset --metric_name f1 --text_column_name "
        "title,text --label_column_name topics --do_train --do_eval --max_seq_length 512 "
        "--per_device_train_batch_size 32 --learning_rate 2e-5 --num_train_epochs 15 --output_dir out/topics/",
        "readme ner": "python run_ner.py --model_name_or_path bert --dataset_name conll2003 --output_dir out/test-ner "
        "--do_train --do_eval",
        "readme qa": "python run_qa.py --model_name_or_path bert --dataset_name rajpurkar/squad "
        f"--do_train --do_eval {_QA}",
        "readme qa v2": "python run_qa.py --model_name_or_path bert --dataset_name rajpurkar/squad_v2 "
        f"--version_2_with_negative --do_train --do_eval {_QA}",
        "readme qa no trainer": "python run_qa_no_trainer.py --model_name_or_path bert --dataset_name rajpurkar/squad "
        "--max_seq_length 384 --doc_stride 128 --output_dir out/debug_squad",
        "readme qa no trainer launch": "accelerate launch run_qa_no_trainer.py --model_name_or_path bert "
        "--dataset_name "
        "rajpurkar/squad --max_seq_length 384 --doc_stride 128 --output_dir out/debug_squad",
        "readme seq2seq qa": "python run_seq2seq_qa.py --model_name_or_path t5 --dataset_name rajpurkar/squad_v2 "
        "--version_2_with_negative --context_column context --question_column question --answer_column answers "
        f"--do_train --do_eval {_QA}",
        "readme ner files": "python run_ner.py --model_name_or_path bert --train_file ner.jsonl --validation_file "
        "ner.jsonl --output_dir out/test-ner --do_train --do_eval",
        **{
            f"readme {task} no trainer{' launch' if launch else ''}": f"{launch or 'python '}run_{task}_no_trainer.py "
            f"--model_name_or_path bert {data} --max_length 128 --per_device_train_batch_size 32 "
            f"--learning_rate 2e-5 --num_train_epochs 3 --output_dir out/{task}/"
            for task, data in (
                ("ner", "--dataset_name conll2003 --task_name ner"),
                ("glue", "--task_name mrpc"),
                ("swag", "--dataset_name swag"),
            )
            for launch in ("", "accelerate launch ")
        },
        "readme clm no trainer": f"python run_clm_no_trainer.py {wiki} --model_name_or_path gpt2 --output_dir "
        "out/test-clm",
        "readme fim": f"python run_fim.py --model_name_or_path gpt2 {wiki} --fim_rate 0.5 --fim_spm_rate 0.2 {text} "
        "--output_dir out/test-clm",
        "readme fim files": f"python run_fim.py --model_name_or_path gpt2 {files} --fim_rate 0.5 --fim_spm_rate 0.2 "
        f"{text} --output_dir out/test-clm",
        "readme fim no trainer": f"python run_fim_no_trainer.py {wiki} --model_name_or_path gpt2 --fim_rate 0.5 "
        "--fim_spm_rate 0.2 --per_device_train_batch_size 2 --per_device_eval_batch_size 2 --output_dir out/test-clm",
        "readme plm": f"python run_plm.py --model_name_or_path=xlnet {wiki} {text} --output_dir out/test-plm",
        "readme plm files": f"python run_plm.py --model_name_or_path=xlnet {files} {text} --output_dir out/test-plm",
        "readme plm lines": f"python run_plm.py --model_name_or_path=xlnet {files} --line_by_line --pad_to_max_length "
        f"{text} --output_dir out/test-plm",
        "readme mlm no trainer": f"python run_mlm_no_trainer.py {wiki} --model_name_or_path roberta --output_dir "
        "out/test-mlm",
        "readme summarization no trainer": "accelerate launch run_summarization_no_trainer.py --model_name_or_path t5 "
        "--dataset_name cnn_dailymail --dataset_config '3.0.0' --source_prefix 'summarize: ' --output_dir out/xsum",
        "readme translation no trainer": "accelerate launch run_translation_no_trainer.py --model_name_or_path marian "
        "--source_lang en --target_lang ro --dataset_name wmt16 --dataset_config_name ro-en --output_dir "
        "out/tst-translation",
        "readme swag": "python run_swag.py --model_name_or_path roberta --do_train --do_eval --learning_rate 5e-5 "
        "--num_train_epochs 3 --output_dir out/swag_base --per_device_eval_batch_size=16 "
        "--per_device_train_batch_size=16 --overwrite_output_dir",
        "readme clm": f"python run_clm.py --model_name_or_path gpt2 {wiki} {text} --output_dir out/test-clm",
        "readme clm files": f"python run_clm.py --model_name_or_path gpt2 {files} {text} --output_dir out/test-clm",
        "readme clm from scratch": f"python run_clm.py --model_type gpt2 --tokenizer_name gpt2 "
        f"--config_overrides='n_embd=64,n_head=4,n_layer=2,n_positions=102' {files} "
        f"{text} --output_dir out/scratch",
        "readme mlm": f"python run_mlm.py --model_name_or_path roberta {wiki} {text} --output_dir out/test-mlm",
        "readme mlm files": f"python run_mlm.py --model_name_or_path roberta {files} {text} --output_dir out/test-mlm",
        "readme mlm lines": f"python run_mlm.py --model_name_or_path roberta {files} --line_by_line "
        f"--pad_to_max_length {text} --output_dir out/test-mlm",
        "readme mlm from scratch": f"python run_mlm.py --model_type roberta --tokenizer_name roberta "
        f"--config_overrides=hidden_size=32,num_attention_heads=2 {files} "
        f"--max_seq_length 64 {text} --output_dir out/test-mlm",
        "readme summarization": "python examples/pytorch/summarization/run_summarization.py --model_name_or_path t5 "
        "--do_train --do_eval --dataset_name cnn_dailymail "
        f'--dataset_config "3.0.0" --source_prefix "summarize: " --output_dir out/tst-summarization {_OVERWRITE}',
        "readme summarization xsum": "python run_summarization.py --model_name_or_path bart --do_train --do_eval "
        "--dataset_name xsum "
        f"--output_dir out/tst-summarization {_OVERWRITE}",
        "readme summarization files": "python run_summarization.py --model_name_or_path t5 --do_train --do_eval "
        "--train_file articles.csv --validation_file articles.csv "
        f'--source_prefix "summarize: " --output_dir out/tst-summarization {_OVERWRITE}',
        "readme summarization columns": "python run_summarization.py --model_name_or_path t5 --do_train --do_eval "
        "--train_file dated.jsonl --validation_file dated.jsonl "
        f'--text_column text --summary_column summary --source_prefix "summarize: " --output_dir out/tst-summarization '
        f"{_OVERWRITE}",
        "readme translation marian": f"python run_translation.py --model_name_or_path marian --do_train --do_eval "
        f"{_RO} {_OVERWRITE}",
        "readme translation t5": f"python run_translation.py --model_name_or_path t5 --do_train --do_eval {t5} {_RO} "
        f"{_OVERWRITE}",
        "readme translation mbart": "python run_translation.py --model_name_or_path mbart --do_train --do_eval "
        "--dataset_name wmt16 --dataset_config_name ro-en "
        f"--source_lang en_XX --target_lang ro_RO --output_dir out/tst-translation {_OVERWRITE}",
        "readme translation files": "python run_translation.py --model_name_or_path t5 --do_train --do_eval "
        "--source_lang en --target_lang ro "
        f"{t5} --train_file wmt16.jsonl --validation_file wmt16.jsonl --output_dir out/tst-translation {_OVERWRITE}",
        "readme translation german": "python run_translation.py --model_name_or_path t5 --do_train --do_eval "
        "--source_lang en --target_lang de "
        f"--source_prefix 'translate English to German: ' --dataset_name stas/wmt14-en-de-pre-processed --output_dir "
        f"out/tst-translation {_OVERWRITE}",
    }


def _of_tests() -> dict[str, str]:
    both = "--train_file {0} --validation_file {0}"
    small = "--overwrite_output_dir --do_train --do_eval --per_device_train_batch_size=2 --per_device_eval_batch_size=1"
    text = both.format("wikitext.txt")
    return {
        "test glue": f"run_glue.py --model_name_or_path distilbert --output_dir out/t-glue {both.format('mrpc.csv')} "
        f"{small} --learning_rate=1e-4 --max_steps=10 "
        "--warmup_steps=2 --seed=42 --max_seq_length=128",
        "test xnli": f"run_xnli.py --model_name_or_path distilbert --language de --output_dir out/t-xnli {small} "
        "--max_steps=10 --max_seq_length=128",
        "test ner": f"run_ner.py --model_name_or_path bert {both.format('ner.jsonl')} --output_dir out/t-ner "
        f"{small.replace('eval_batch_size=1', 'eval_batch_size=2')} --warmup_steps=2 --learning_rate=2e-4 "
        "--num_train_epochs=2 --seed 7",
        "test ner no trainer": f"run_ner_no_trainer.py --model_name_or_path distilbert {both.format('ner.jsonl')} "
        "--output_dir out/t-ner --learning_rate=2e-4 --per_device_train_batch_size=2 --per_device_eval_batch_size=2 "
        "--num_train_epochs=2 --seed 7 --checkpointing_steps epoch --with_tracking",
        "test glue no trainer": f"run_glue_no_trainer.py --model_name_or_path distilbert --output_dir out/t-glue "
        f"{both.format('mrpc.csv')} --per_device_train_batch_size=2 --per_device_eval_batch_size=1 "
        "--learning_rate=1e-4 --seed=42 --num_warmup_steps=2 --checkpointing_steps epoch --with_tracking",
        "test clm no trainer": f"run_clm_no_trainer.py --model_name_or_path gpt2 {text} --block_size 128 "
        "--per_device_train_batch_size 5 --per_device_eval_batch_size 5 --num_train_epochs 2 --output_dir out/t-clm "
        "--checkpointing_steps epoch --with_tracking",
        "test translation no trainer": f"run_translation_no_trainer.py --model_name_or_path marian --source_lang en "
        f"--target_lang ro {both.format('wmt16.jsonl')} --output_dir out/t-trans --max_train_steps=50 "
        "--num_warmup_steps=8 --num_beams=6 --learning_rate=3e-3 --per_device_train_batch_size=2 "
        "--per_device_eval_batch_size=1 --source_lang en_XX --target_lang ro_RO --checkpointing_steps epoch "
        "--with_tracking",
        "test qa": "run_qa.py --model_name_or_path bert --version_2_with_negative "
        f"{both.format('squad.json')} --output_dir "
        f"out/t-qa {small} --max_steps=10 --warmup_steps=2 --learning_rate=2e-4 --max_seq_length 64 --doc_stride 16",
        "test seq2seq qa": f"run_seq2seq_qa.py --model_name_or_path t5 --version_2_with_negative "
        f"{both.format('squad.json')} --output_dir out/t-s2s-qa {small} --max_steps=10 --warmup_steps=2 "
        "--learning_rate=2e-4 --predict_with_generate",
        "test swag": f"run_swag.py --model_name_or_path bert {both.format('swag.jsonl')} --output_dir out/t-swag "
        f"{small} --max_steps=20 --warmup_steps=2 --learning_rate=2e-4",
        "test clm": f"run_clm.py --model_name_or_path gpt2 {text} --do_train --do_eval --block_size 128 "
        f"--per_device_train_batch_size 5 "
        "--per_device_eval_batch_size 5 --num_train_epochs 2 --output_dir out/t-clm --overwrite_output_dir --use_cpu",
        "test clm overrides": "run_clm.py --model_type gpt2 --tokenizer_name gpt2 --train_file wikitext.txt "
        "--output_dir out/t-over "
        "--config_overrides n_embd=10,n_head=2 --use_cpu",
        "test mlm": f"run_mlm.py --model_name_or_path roberta {text} --output_dir out/t-mlm --overwrite_output_dir "
        f"--do_train --do_eval --prediction_loss_only "
        "--num_train_epochs=1 --use_cpu",
        "test summarization": f"run_summarization.py --model_name_or_path t5 {both.format('xsum.jsonl')} --output_dir "
        f"out/t-sum {small} --max_steps=50 --warmup_steps=8 "
        "--learning_rate=2e-4 --predict_with_generate",
        "test translation": f"run_translation.py --model_name_or_path marian --source_lang en --target_lang ro {small} "
        f"{both.format('wmt16.jsonl')} --output_dir out/t-trans --max_steps=50 --warmup_steps=8 --learning_rate=3e-3 "
        f"--predict_with_generate "
        "--source_lang en_XX --target_lang ro_RO --max_source_length 512",
    }


def _of_trainer_tests() -> dict[str, str]:
    def command(
        launcher: str,
        extra: str,
        optim: str = "--adafactor",
        length: int = 12,
        evaluated: int | None = 1,
        rate: str = "3e-3",
        epochs: int = 1,
    ) -> str:
        train = (
            f"--model_name_or_path mbart --train_file wmt16.jsonl --validation_file wmt16.jsonl --test_file "
            f"wmt16.jsonl --output_dir out/ext --overwrite_output_dir "
            f"--max_train_samples 8 --max_source_length {length} --max_target_length {length} --do_train "
            f"--num_train_epochs {epochs} --per_device_train_batch_size 4 "
            f"--learning_rate {rate} --warmup_steps 8 --logging_steps 0 --logging_strategy no --save_steps "
            f"{evaluated or 0} --group_by_length "
            "--label_smoothing_factor 0.1 --target_lang ro_RO --source_lang en_XX"
        )
        scored = (
            f"--do_eval --per_device_eval_batch_size 4 --max_eval_samples 8 --val_max_target_length {length} "
            f"--evaluation_strategy steps --eval_steps {evaluated}"
        )
        return f"{launcher}run_translation.py {train} {scored + ' --do_predict' if evaluated else ''} {extra} {optim}"

    spread = "python -m torch.distributed.run --nproc_per_node=2 --master_port=10999 examples/pytorch/translation/"
    levels = {
        "base": "",
        "low": "--log_level debug --log_level_replica debug",
        "high": "--log_level error --log_level_replica debug",
        "mixed": "--log_level error --log_level_replica error",
    }
    return {
        "ext quick": command("", "--predict_with_generate"),
        "ext ddp": command(spread, "--predict_with_generate"),
        "ext apex": command(spread, "--predict_with_generate --fp16 --fp16_backend=apex"),
        "ext seq2seq": command("", "--predict_with_generate", length=128, evaluated=2, rate="3e-4", epochs=10),
        **{f"ext log level {name}": command(spread, extra, evaluated=None) for name, extra in levels.items()},
        **{
            f"ext {optim}": command(
                spread, "--predict_with_generate --skip_memory_metrics 0", f"--optim {optim}", 128, None, "3e-4"
            )
            for optim in ("adamw_torch", "adamw_bnb_8bit")
        },
    }


def _of_deepspeed_tests() -> dict[str, str]:
    found = {}
    base = (
        "--train_file wmt16.jsonl --validation_file wmt16.jsonl --output_dir out/ds --overwrite_output_dir "
        "--max_source_length 32 --max_target_length 32 "
        "--val_max_target_length 32 --warmup_steps 8 --predict_with_generate --save_steps 0 --eval_steps {steps} "
        "--group_by_length --label_smoothing_factor 0.1 "
        "--source_lang en --target_lang ro --report_to none --source_prefix 'translate English to Romanian: '"
    )
    train = (
        "--do_train --num_train_epochs 1 --max_train_samples 16 --per_device_train_batch_size 2 --learning_rate 3e-3"
    )
    scored = "--do_eval --max_eval_samples 16 --per_device_eval_batch_size 2"
    for stage in ("zero2", "zero3"):
        for dtype in ("fp16", "bf16"):
            for name, gpus, flags, steps in (
                ("distributed", 2, f"--{dtype} {train} {scored}", 10), ("fp32 alone", 1, f"{train} {scored}", 10), ("fp32", 2, f"{train} {scored}", 10),  # noqa: E501
                ("not resumed", 2, f"--{dtype} {train}", 1), ("inference", 2, f"--{dtype} {scored}", 10),
            ):  # fmt: skip
                if (name.startswith("fp32") and dtype == "bf16") or (name == "inference" and stage == "zero2"):
                    continue
                launcher = f"deepspeed --num_nodes 1 --num_gpus {gpus} --master_port 10999"
                flags = f"--model_name_or_path t5 {base.format(steps=steps)} {flags} --deepspeed {stage}.json"
                found[f"deepspeed {name} {stage} {dtype}"] = (
                    f"{launcher} examples/pytorch/translation/run_translation.py {flags}"
                )
            text = (
                "--train_file wikitext.txt --validation_file wikitext.txt --output_dir out/ds-clm "
                "--overwrite_output_dir --do_train"
            )
            found[f"deepspeed clm {stage} {dtype}"] = (
                f"deepspeed --num_nodes 1 --num_gpus 2 run_clm.py --model_name_or_path gpt2 {text} --do_eval "
                f"--max_train_samples 16 --max_eval_samples 16 "
                f"--per_device_train_batch_size 2 --per_device_eval_batch_size 2 --num_train_epochs 1 --warmup_steps 8 "
                f"--block_size 64 --report_to none --{dtype} "
                f"--deepspeed {stage}.json"
            )
    found["deepspeed clm from config"] = (
        "deepspeed --num_nodes 1 --num_gpus 2 run_clm.py --model_type gpt2 --tokenizer_name gpt2 --train_file "
        "wikitext.txt --validation_file wikitext.txt "
        "--output_dir out/ds-config --overwrite_output_dir --do_train --max_train_samples 4 "
        "--per_device_train_batch_size 2 --num_train_epochs 1 --warmup_steps 8 "
        "--block_size 8 --fp16 --report_to none --deepspeed zero3.json"
    )
    return found


def _of_model_zoo() -> dict[str, str]:
    tasks = {
        "run_translation.py --train_file wmt16.jsonl --source_lang en --target_lang ro --max_source_length 12 "
        "--max_target_length 12": (
            "bart",
            "fsmt",
            "m2m_100",
            "marian",
            "mbart",
            "t5",
            "mt5",
        ),
        "run_summarization.py --train_file xsum.jsonl --max_source_length 12 --max_target_length 12 --lang en": (
            "pegasus",
        ),
        "run_clm.py --train_file wikitext.txt --block_size 8": (
            "big_bird",
            "bigbird_pegasus",
            "blenderbot",
            "bloom",
            "gpt2",
            "gpt_neo",
            "gptj",
            "xlm-roberta",
            "prophetnet",
        ),
        "run_mlm.py --train_file wikitext.txt": (
            "albert",
            "deberta",
            "deberta-v2",
            "distilbert",
            "electra",
            "flaubert",
            "funnel",
        ),
        "run_swag.py --train_file swag.jsonl --max_seq_length 24": ("electra", "xlnet"),
        "run_ner.py --train_file ner.jsonl --max_seq_length 24": ("deberta-v2", "roberta"),
        "run_glue.py --train_file mrpc.csv --max_seq_length 12 --task_name MRPC": ("bert", "xlnet"),
    }
    rest = (
        "--do_train --max_train_samples 4 --per_device_train_batch_size 2 --num_train_epochs 1 --fp16 --report_to none "
        "--overwrite_output_dir --save_steps 1"
    )
    return {
        f"zoo {_kind(task)}{family} {stage}": "deepspeed --num_nodes 1 --num_gpus 2 "
        f"--master_port 10999 {task} --model_name_or_path {family} {rest} "
        f"--deepspeed {stage}.json --output_dir out/zoo"
        for stage in ("zero2", "zero3")
        for task, families in tasks.items()
        for family in families
    }


def _kind(task: str) -> str:
    """Of tasks that have a family in common with another."""
    return next((f"{kind} " for kind in ("swag", "ner") if f"run_{kind}.py" in task), "")


TEXT = "The house is old, said number {i}. It stands near the river since the year {i}."
SHORT = "An old house {i}."
ROWS = 24


def write_inputs(folder: Path) -> None:
    """Rows of each dataset and file, and the two DeepSpeed files."""

    def write(name: str, row: dict[str, Any]) -> None:
        rows = [json.dumps(_filled(row, i)) for i in range(ROWS)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")

    for task, columns in PAIRS.items():
        write(f"glue-{task}", {**dict.fromkeys(columns, TEXT), "label": 0.5 if task == "stsb" else 0, "idx": 0})
    write("imdb", {"text": TEXT, "label": 0})
    write("wikitext", {"text": TEXT})
    write("cnn_dailymail", {"article": TEXT, "highlights": SHORT, "id": ""})
    write("xsum", {"document": TEXT, "summary": SHORT, "id": ""})
    write("dated", {"id": 0, "date": "", "text": TEXT, "summary": SHORT})
    write("wmt16", {"translation": {"en": SHORT, "ro": SHORT}})
    write("wmt14-en-de-pre-processed", {"translation": {"en": SHORT, "de": SHORT}})
    write("conll2003", {"id": "", "tokens": SHORT.split(), "pos_tags": [0] * 4, "ner_tags": ["O", "O", "B-X", "I-X"]})
    write("facebook", {"premise": TEXT, "hypothesis": SHORT, "label": 0})
    write("amazon_reviews_multi", {"review_title": SHORT, "review_body": TEXT, "product_category": "", "stars": 0})
    write("topics", {"title": SHORT, "text": TEXT, "topics": ["old", "house"]})
    write("ner", {"words": SHORT.split(), "ner": ["O", "O", "B-X", "I-X"]})
    answers = {"text": ["house"], "answer_start": [7]}
    questions = [
        {"id": str(i), "title": "", "context": SHORT.format(i=i), "question": "What is old?", "answers": answers}
        for i in range(ROWS)
    ]
    (folder / "rajpurkar.jsonl").write_text("\n".join(map(json.dumps, questions)) + "\n")
    (folder / "squad.json").write_text(json.dumps({"version": "v2.0", "data": questions}))
    endings = {f"ending{number}": SHORT for number in range(4)}
    for name in ("swag", "allenai"):
        write(name, {"sent1": TEXT, "sent2": "There it", **endings, "label": 1})
    texts = [TEXT.format(i=i) for i in range(ROWS)]
    (folder / "wikitext.txt").write_text("\n".join(texts))
    (folder / "articles.csv").write_text(
        "text,summary\n" + "".join(f'"{text}",short {i}\n' for i, text in enumerate(texts))
    )
    (folder / "mrpc.csv").write_text(
        "label,sentence1,sentence2\n" + "".join(f'{i % 2},"{text}",short {i}\n' for i, text in enumerate(texts))
    )
    adamw = {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")}
    warmup = {
        "type": "WarmupLR",
        "params": dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps"), "auto"),
    }
    auto = dict.fromkeys(
        ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
        "auto",
    )
    cpu = {"device": "cpu", "pin_memory": True}
    for stage in (2, 3):
        zero = {"stage": stage, "offload_optimizer": cpu, "overlap_comm": True, "contiguous_gradients": True}
        zero |= (
            {"offload_param": cpu, "reduce_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
            if stage == 3
            else {"reduce_bucket_size": 2e8}
        )
        config = {
            "fp16": {"enabled": "auto"},
            "bf16": {"enabled": "auto"},
            "optimizer": adamw,
            "scheduler": warmup,
            "zero_optimization": zero,
            **auto,
        }
        (folder / f"zero{stage}.json").write_text(json.dumps(config))


def _filled(value: Any, i: int) -> Any:
    if isinstance(value, list):
        return [_filled(part, i) for part in value]
    if isinstance(value, dict):
        return {key: _filled(part, i) for key, part in value.items()}
    return value.format(i=i) if isinstance(value, str) else float(i % 5) + value if isinstance(value, float) else i % 2


def local_job(job: dict[str, Any]) -> dict[str, Any]:
    """A job with the local rows of its datasets."""
    data = job["data"]
    for split in {"train", "validation"} & data.keys():
        given = data[split]
        data[split] = (
            {name: _local(source) for name, source in given.items()} if isinstance(given, dict) else _local(given)
        )
    return job


def _local(source: str) -> str:
    if not source.startswith("hf://"):
        return source
    name = source.removeprefix("hf://").partition(":")[0]
    parts = name.split("/")
    return (
        f"glue-{parts[2]}.jsonl"
        if name.startswith("nyu-mll/glue")
        else f"{parts[-1] if parts[0] == 'stas' else parts[0]}.jsonl"
    )
