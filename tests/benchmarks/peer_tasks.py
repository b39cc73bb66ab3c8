"""The peer of the other tasks: plain Hugging Face `Trainer` in the manner of run_clm.py, run_mlm.py,
run_summarization.py, run_translation.py and run_glue.py, and TRL's prompts and completions.

    torchrun --nproc-per-node 2 tests/benchmarks/peer_tasks.py --kind translation --model DIR --train a.jsonl \
        --output_dir OUT ...
    python tests/benchmarks/peer_tasks.py --kind translation --model OUT --validation b.jsonl \
        --score 1 --output_dir TMP

With `--validation` a training ends with an evaluation, which generates where the task does. With `--score 1` nothing is
trained: a model of either side is evaluated, by one and the same code. Every other flag is a `Seq2SeqTrainingArguments`
field. The last line of standard output is one JSON object. Nothing of `raytrain_nlp` is
imported.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from peer import Recorder, join_deepspeed, reorder
from transformers import (
    AutoConfig,
    AutoTokenizer,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    set_seed,
)

Rows = list[dict[str, Any]]
IGNORED = -100
AUTO = {
    "causal-lm": "AutoModelForCausalLM",
    "completion": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "summarization": "AutoModelForSeq2SeqLM",
    "translation": "AutoModelForSeq2SeqLM",
    "regression": "AutoModelForSequenceClassification",
    "text-classification": "AutoModelForSequenceClassification",
}


@dataclass
class PeerArguments:
    kind: str = field(default="", metadata={"help": ", ".join(AUTO)})
    model: str = field(default="", metadata={"help": "folder of a pretrained model"})
    config: str | None = field(default=None, metadata={"help": "JSON of a model config: build from scratch"})
    tokenizer: str | None = field(default=None, metadata={"help": "folder, where it is not the model's"})
    train: str | None = None
    validation: str | None = None
    columns: list[str] = field(default_factory=lambda: ["text"])
    max_length: int = 128
    max_target_length: int = 64
    max_validation_rows: int | None = None
    lora: str | None = field(default=None, metadata={"help": "JSON of a LoraConfig"})
    batches: str | None = field(
        default=None, metadata={"help": "JSON list of global batches (row numbers): train on exactly these"}
    )
    score: int = 0
    save_model: int = 1
    dtype: str = field(default="float32", metadata={"help": "of pretrained weights that are trained"})


def read_rows(path: str, most: int | None = None) -> Rows:
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [row["translation"] if isinstance(row.get("translation"), dict) else row for row in rows]
    return rows[:most] if most else rows


def encode(peer: PeerArguments, rows: Rows, tokenizer: Any) -> Rows:
    """Rows as the example script of this task makes them."""
    texts = [[str(row[column]) for row in rows] for column in peer.columns]
    if peer.kind in ("causal-lm", "masked-lm"):
        blocks = group_texts(tokenizer(texts[0], return_special_tokens_mask=peer.kind == "masked-lm"), peer.max_length)
        if peer.kind == "causal-lm":
            # no prediction; `Trainer` would count it for GPT-2 and divide the loss by one too many (transformers 5.23)
            for block in blocks:
                block["labels"][0] = IGNORED
        return blocks
    if peer.kind == "completion":
        pairs = zip(tokenizer(texts[0])["input_ids"], tokenizer(texts[1], add_special_tokens=False)["input_ids"])
        ids = [(prompt, [*completion, tokenizer.eos_token_id]) for prompt, completion in pairs]
        made = [
            ((prompt + completion)[: peer.max_length], ([IGNORED] * len(prompt) + completion)[: peer.max_length])
            for prompt, completion in ids
        ]
        return [{"input_ids": row, "attention_mask": [1] * len(row), "labels": labels} for row, labels in made]
    if peer.kind == "regression":
        encoded = tokenizer(*texts, truncation=True, max_length=peer.max_length)
        return [
            {**{key: encoded[key][i] for key in encoded}, "label": float(row["label"])} for i, row in enumerate(rows)
        ]
    if peer.kind == "text-classification":
        encoded = tokenizer(*texts, truncation=True, max_length=peer.max_length)
        return [{**{key: encoded[key][i] for key in encoded}, "label": int(row["label"])} for i, row in enumerate(rows)]
    sources = tokenizer(texts[0], truncation=True, max_length=peer.max_length)
    targets = tokenizer(text_target=texts[1], truncation=True, max_length=peer.max_target_length)["input_ids"]
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": labels}
        for ids, mask, labels in zip(sources["input_ids"], sources["attention_mask"], targets)
    ]


def group_texts(encoded: Any, block_size: int) -> Rows:
    """All texts as one stream, cut into blocks; the remainder is dropped, as in the examples."""
    stream = {key: [value for row in encoded[key] for value in row] for key in encoded}
    whole = len(stream["input_ids"]) // block_size * block_size
    blocks = [{key: values[i : i + block_size] for key, values in stream.items()} for i in range(0, whole, block_size)]
    return [{**block, "labels": list(block["input_ids"])} for block in blocks]


def build_collator(peer: PeerArguments, tokenizer: Any, model: Any) -> Any:
    if peer.kind == "masked-lm":
        return transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    if peer.kind == "causal-lm":
        return transformers.default_data_collator
    if peer.kind in ("regression", "text-classification"):
        return transformers.DataCollatorWithPadding(tokenizer)
    return transformers.DataCollatorForSeq2Seq(tokenizer, model if model.config.is_encoder_decoder else None)


def build_model(peer: PeerArguments, tokenizer: Any) -> Any:
    auto = getattr(transformers, AUTO[peer.kind])
    extra = {"num_labels": 1, "problem_type": "regression"} if peer.kind == "regression" else {}
    if peer.config:
        values = {"vocab_size": len(tokenizer), **json.loads(peer.config), **extra}
        ids = {
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        start = {"decoder_start_token_id": tokenizer.pad_token_id} if "Seq2Seq" in AUTO[peer.kind] else {}
        model = auto.from_config(AutoConfig.for_model(values.pop("model_type"), **{**ids, **start, **values}))
    else:
        model = auto.from_pretrained(peer.model, dtype=getattr(torch, peer.dtype), **extra)
    if peer.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **json.loads(peer.lora)))
    return model


def train(peer: PeerArguments, args: Seq2SeqTrainingArguments) -> dict[str, Any]:
    recorder = Recorder()
    set_seed(args.seed)
    tokenizer = load_tokenizer(peer)
    rows = encode(peer, read_rows(peer.train), tokenizer)
    if peer.batches:
        rows = reorder(rows, peer.batches)
        args.train_sampling_strategy = "sequential"
    model = build_model(peer, tokenizer)
    recorder.mark("model")
    generates = "Seq2Seq" in AUTO[peer.kind]
    if peer.validation and generates:
        args.predict_with_generate, args.generation_max_length = True, peer.max_target_length
    trainer = (Seq2SeqTrainer if generates else Trainer)(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=encode(peer, read_rows(peer.validation), tokenizer) if peer.validation else None,
        processing_class=tokenizer,
        data_collator=build_collator(peer, tokenizer, model),
        callbacks=[recorder],
        compute_metrics=(lambda prediction: figures_of(peer, tokenizer, prediction)) if generates else None,
    )
    trainer.train()
    memory = {"reserved": torch.cuda.max_memory_reserved()} if torch.cuda.is_available() else {}
    metrics = trainer.evaluate() if peer.validation else {}
    if not peer.save_model:
        pass
    elif peer.lora and trainer.is_world_process_zero():
        model.merge_and_unload().save_pretrained(args.output_dir)
        tokenizer.save_pretrained(args.output_dir)
    elif not peer.lora:
        trainer.save_model(args.output_dir)
    return (
        {"steps": recorder.steps, "logs": recorder.logs, "marks": recorder.marks, "metrics": metrics, **memory}
        if trainer.is_world_process_zero()
        else {}
    )


def score(peer: PeerArguments, args: Seq2SeqTrainingArguments) -> dict[str, Any]:
    """Figures of a model on the validation rows, by the standard libraries."""
    tokenizer = load_tokenizer(peer)
    rows = encode(peer, read_rows(peer.validation, peer.max_validation_rows), tokenizer)
    set_seed(0)  # the same masks for both sides
    model = build_model(peer, tokenizer)
    generates = "Seq2Seq" in AUTO[peer.kind]
    args.predict_with_generate, args.generation_max_length, args.generation_num_beams = (
        generates,
        peer.max_target_length,
        1,
    )
    args.prediction_loss_only = not generates and peer.kind != "regression"
    trainer = (Seq2SeqTrainer if generates else Trainer)(
        model=model,
        args=args,
        eval_dataset=rows,
        processing_class=tokenizer,
        data_collator=build_collator(peer, tokenizer, model),
        compute_metrics=lambda prediction: figures_of(peer, tokenizer, prediction),
    )
    set_seed(0)
    metrics = {key.removeprefix("eval_"): value for key, value in trainer.evaluate().items()}
    if args.prediction_loss_only:
        metrics["perplexity"] = math.exp(metrics["loss"])
    return {"metrics": metrics}


def figures_of(peer: PeerArguments, tokenizer: Any, prediction: Any) -> dict[str, float]:
    if peer.kind == "regression":
        from scipy.stats import pearsonr, spearmanr

        guesses = prediction.predictions.squeeze(-1)
        return {
            "pearson": pearsonr(guesses, prediction.label_ids)[0],
            "spearman": spearmanr(guesses, prediction.label_ids)[0],
        }
    ids = (
        np.where(rows == IGNORED, tokenizer.pad_token_id, rows)
        for rows in (prediction.predictions, prediction.label_ids)
    )
    guesses, truths = (
        [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)] for rows in ids
    )
    if peer.kind == "summarization":
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
        scores = [scorer.score(truth, guess) for guess, truth in zip(guesses, truths)]
        return {name: 100 * float(np.mean([entry[name].fmeasure for entry in scores])) for name in ("rouge1", "rougeL")}
    import sacrebleu

    return {
        "bleu": sacrebleu.corpus_bleu(guesses, [truths]).score, "chrf": sacrebleu.corpus_chrf(guesses, [truths]).score,
        "exact_match": 100 * float(np.mean([guess == truth for guess, truth in zip(guesses, truths)])),
    }  # fmt: skip


def load_tokenizer(peer: PeerArguments) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(peer.tokenizer or peer.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def main() -> None:
    peer, args = HfArgumentParser((PeerArguments, Seq2SeqTrainingArguments)).parse_args_into_dataclasses()
    if args.deepspeed and args.use_cpu:
        join_deepspeed()
    args.report_to, args.disable_tqdm = [], True
    if result := (score if peer.score else train)(peer, args):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
