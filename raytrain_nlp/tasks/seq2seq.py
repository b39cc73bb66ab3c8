"""Summarization and translation: one core, two readings of a row and two sets of figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks.seq2seq import Seq2Seq, Summarization, Translation
from raytrain_nlp.tasks.base import (
    IGNORED,
    CollateContext,
    Columns,
    Lengths,
    Metrics,
    Place,
    TaskDefaults,
    attention_mask,
    check_text,
    pad,
    unicode_text,
)
from raytrain_nlp.tasks.truncation import FULL, FULL_TARGET, full_lengths


class Seq2SeqTask(TaskDefaults):
    """See `tasks.base.Task`. A task names its columns and scores texts."""

    auto_model = "AutoModelForSeq2SeqLM"
    auto_mapping = "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"
    peft_type = "SEQ_2_SEQ_LM"
    tokenizer_kind = "seq2seq"
    generates = True
    writes_text = True

    def __init__(self, config: Seq2Seq):
        self.config = config

    def pair(self, values: dict[str, Any]) -> dict[str, Any]:
        """The mapping that holds source and target text: the row itself, or a dict inside it."""
        return values

    def source_and_target(self) -> tuple[str, str]:
        """Keys of both in `pair`."""
        raise NotImplementedError

    scores: tuple[str, ...]
    """Names of the figures of `score`."""

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        return (*self.scores, "gen_len")

    def score(self, predictions: list[str], references: list[str]) -> Metrics:
        """The figures of generated texts."""
        raise NotImplementedError

    def required_columns(self) -> list[str]:
        return list(self.source_and_target())

    def check_row(self, values: dict[str, Any]) -> str | None:
        pair = self.pair(values)
        return next((reason for column in self.source_and_target() if (reason := check_text(pair, column))), None)

    def texts(self, values: dict[str, Any]) -> Iterator[str]:
        pair = self.pair(values)
        yield from (unicode_text(pair[column]) for column in self.source_and_target())

    def lengths(self, max_length: int, split: str) -> Lengths:
        config = self.config
        evaluated = config.val_max_target_length or config.max_target_length
        return Lengths(
            config.max_source_length or max_length, config.max_target_length if split == "train" else evaluated
        )

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        columns, target = self.encode_inputs(rows, tokenizer, lengths), self.source_and_target()[1]
        texts = [unicode_text(self.pair(row)[target]) for row in rows]
        encoded = tokenizer(text_target=texts, truncation=True, max_length=lengths.target, return_attention_mask=False)
        return {
            **columns,
            "labels": encoded["input_ids"],
            FULL_TARGET: full_lengths(tokenizer, encoded, (texts,), lengths.target),
        }

    def check_tokenizer(self, tokenizer: Any) -> str | None:
        return (
            "has no end-of-sequence token, with which the decoder ends a text"
            if tokenizer.eos_token_id is None
            else None
        )

    def apply_languages(self, tokenizer: Any) -> None:
        """Tell a multilingual tokenizer what it reads and writes."""

    def collate(self, columns: Columns, context: CollateContext, place: Place) -> dict[str, np.ndarray]:
        rows = columns["input_ids"]
        return {
            "input_ids": pad(rows, context.pad_token_id, context.padding_side),
            "attention_mask": attention_mask(rows, context.padding_side),
            "labels": pad(columns["labels"], IGNORED, "right"),
        }

    def special_tokens(self, tokenizer: Any) -> dict[str, Any]:
        """The decoder starts with padding, as T5's; defaults of BART and Marian name ids of their own vocabularies."""
        pad, bos, eos = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
        return {"bos_token_id": bos, "eos_token_id": eos, "forced_eos_token_id": eos, "decoder_start_token_id": pad}

    def apply_to_model(self, model: Any, tokenizer: Any) -> None:
        """Set the decoder's start token, and generation's pad and end tokens, where the model does not define them."""
        if getattr(model.config, "decoder_start_token_id", None) is None:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.pad_token_id
            model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = start
        for name in ("pad_token_id", "eos_token_id"):
            if getattr(model.generation_config, name) is None:
                setattr(model.generation_config, name, getattr(tokenizer, name))

    def reduce_logits(self, logits: Any, labels: Any) -> Any:
        """Generated tokens as they are; of logits (without predict_with_generate) the likeliest token of each place."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits.argmax(-1) if logits.dim() > 2 else logits

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Callable[[Any], Metrics]:
        def compute_metrics(prediction: Any) -> Metrics:
            lengths = (~np.isin(prediction.predictions, (tokenizer.pad_token_id, IGNORED))).sum(axis=1)
            metrics = self.score(decode(prediction.predictions, tokenizer), decode(prediction.label_ids, tokenizer))
            return {name: float(value) for name, value in {**metrics, "gen_len": lengths.mean()}.items()}

        return compute_metrics

    def score_rows(self, predictions: Any, truth: Any, labels: list[str], tokenizer: Any) -> Iterator[dict[str, Any]]:
        for guess, reference in zip(decode(predictions, tokenizer), decode(truth, tokenizer), strict=True):
            yield {"prediction": guess, "reference": reference}

    # Prediction

    def input_columns(self) -> list[str]:
        return self.required_columns()[:1]

    def check_input(self, values: dict[str, Any]) -> str | None:
        return check_text(self.pair(values), self.source_and_target()[0])

    def encode_inputs(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        source = self.source_and_target()[0]
        self.apply_languages(tokenizer)
        sources = [self.config.source_prefix + unicode_text(self.pair(row)[source]) for row in rows]
        encoded = tokenizer(sources, truncation=True, max_length=lengths.source, return_attention_mask=False)
        return {"input_ids": encoded["input_ids"], FULL: full_lengths(tokenizer, encoded, (sources,), lengths.source)}

    def outputs(self, model: Any, inputs: dict[str, Any], tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
        return {"generated": model.generate(**inputs, **generation)}

    def predictions(
        self, outputs: dict[str, np.ndarray], labels: list[str], tokenizer: Any
    ) -> Iterator[dict[str, Any]]:
        yield from ({"prediction": text} for text in decode(outputs["generated"], tokenizer))


class SummarizationTask(Seq2SeqTask):
    """Texts to summaries."""

    config: Summarization
    scores = ("rouge1", "rouge2", "rougeL", "rougeLsum")

    def source_and_target(self) -> tuple[str, str]:
        return self.config.text_column, self.config.summary_column

    def score(self, predictions: list[str], references: list[str]) -> Metrics:
        """ROUGE-1, 2, L and Lsum as F-measures from 0 to 100, means over rows (Lin 2004, `rouge-score` with stemming);
        a sentence a line for Lsum, as in the paper.
        """
        from rouge_score.rouge_scorer import RougeScorer

        kinds = self.scores
        scorer = RougeScorer(list(kinds), use_stemmer=True)
        scores = [
            scorer.score(_lines(truth), _lines(guess)) for guess, truth in zip(predictions, references, strict=True)
        ]
        return {kind: 100 * float(np.mean([score[kind].fmeasure for score in scores])) for kind in kinds}


class TranslationTask(Seq2SeqTask):
    """Sentences to their translation."""

    config: Translation
    scores = ("bleu", "chrf", "exact_match")

    def pair(self, values: dict[str, Any]) -> dict[str, Any]:
        nested = values.get("translation")
        return nested if isinstance(nested, dict) and self.config.source_column is None else values

    def source_and_target(self) -> tuple[str, str]:
        return self.config.source, self.config.target

    def required_columns(self) -> list[str]:
        return []  # nested or not: only a row can tell

    def apply_languages(self, tokenizer: Any) -> None:
        for name in ("src_lang", "tgt_lang"):
            if hasattr(tokenizer, name):
                setattr(tokenizer, name, self.config.source_lang if name == "src_lang" else self.config.target_lang)

    def check_tokenizer(self, tokenizer: Any) -> str | None:
        needed = {"task.forced_bos_token": self.config.forced_bos_token}
        if hasattr(tokenizer, "src_lang"):  # mBART, NLLB, M2M100: the languages are tokens
            needed |= {"task.source_lang": self.config.source_lang, "task.target_lang": self.config.target_lang}
        missing = [
            f"{token!r} ({key})"
            for key, token in needed.items()
            if token and tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id)
        ]
        return f"has no token {' and none '.join(missing)}" if missing else super().check_tokenizer(tokenizer)

    def apply_to_model(self, model: Any, tokenizer: Any) -> None:
        super().apply_to_model(model, tokenizer)
        self.apply_languages(tokenizer)
        forced = self.config.forced_bos_token or (self.config.target_lang if hasattr(tokenizer, "tgt_lang") else None)
        if forced:
            forced_id = tokenizer.convert_tokens_to_ids(forced)
            model.generation_config.forced_bos_token_id = forced_id
            if "mbart" in model.config.model_type:  # mBART starts its decoder with the target language
                model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = forced_id

    def score(self, predictions: list[str], references: list[str]) -> Metrics:
        """BLEU (Papineni et al. 2002) and chrF (Popović 2015) of the whole corpus by sacrebleu, from 0 to 100."""
        import sacrebleu

        return {
            "bleu": sacrebleu.corpus_bleu(predictions, [references]).score,
            "chrf": sacrebleu.corpus_chrf(predictions, [references]).score,
            "exact_match": 100
            * float(np.mean([guess == truth for guess, truth in zip(predictions, references, strict=True)])),
        }


def decode(ids: np.ndarray, tokenizer: Any) -> list[str]:
    """Rows of token ids, filled up with padding or `IGNORED`, as texts."""
    return [
        text.strip()
        for text in tokenizer.batch_decode(
            np.where(ids == IGNORED, tokenizer.pad_token_id, ids), skip_special_tokens=True
        )
    ]


def _lines(text: str) -> str:
    """A sentence a line, by the usual marks of their ends."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())
