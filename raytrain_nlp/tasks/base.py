"""What a task is: everything that differs between text classification and the other tasks, and nothing else.

`check_row` and `encode` run where data are prepared, `collate` where the feed runs (NumPy only: no torch is loaded
there), the rest in the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from raytrain_nlp.config.labels import label_ids
from raytrain_nlp.errors import Problem
from raytrain_nlp.tasks.objective import Objective

IGNORED = -100
"""Label of a token that is not predicted, in `transformers` and in `torch.nn.CrossEntropyLoss`."""

Columns = dict[str, list[Any]]
Metrics = dict[str, float]


@dataclass(frozen=True)
class Lengths:
    """The numbers of tokens that a row, and its target, are truncated to; None: not truncated."""

    source: int | None
    target: int | None = None
    ends: int | None = None
    """Id of a token that all rows must have equally often, because the model's head reads its last position."""


@dataclass(frozen=True)
class Encoded:
    """The result of encoding some rows of data."""

    columns: Columns
    """Token columns."""
    rows: list[int]
    """Of each encoded row, the place of the row it is made of: none, one or several are made of each, in order."""
    refused: dict[int, str] = field(default_factory=dict)
    """Bad rows: place and reason."""
    unlearned: dict[int, str] = field(default_factory=dict)
    """Rows that are left out, because no token of theirs is learned: place and reason."""


@dataclass(frozen=True)
class Packing:
    """How rows become blocks of tokens."""

    kind: str
    """concat or best_fit."""
    block_size: int


@dataclass(frozen=True)
class Place:
    """Where rows stand in the plan. Randomness in collating, such as masking, is seeded with these values only."""

    seed: int
    epoch: int
    rows: np.ndarray
    """Row ids: int64 [rows]."""
    longest: int = 0
    """Tokens of the longest row of the global batch, of which these may be a part; 0: not known."""


@dataclass(frozen=True)
class CollateContext:
    """What collating needs besides the rows; plain values, so that it travels to remote functions."""

    pad_token_id: int
    pad_token_type_id: int
    padding_side: str
    model_inputs: list[str]
    labels: list[str]
    mask_token_id: int | None = None
    vocab_size: int = 0

    @property
    def label_ids(self) -> dict[str, int]:
        """The id of each text that stands for a label."""
        return label_ids(self.labels)


class Task(Protocol):
    """One NLP task, built from its section of the job. `TaskDefaults` answers what most tasks answer alike."""

    auto_model: str
    """Name of the `transformers.AutoModelFor...` class."""
    auto_mapping: str
    """Name of the mapping in `transformers.models.auto.modeling_auto` that lists the model types it takes."""
    float32_weights: bool
    """Do its models fail with weights in half precision? Autocast, whose weights are in float32, is no matter."""
    peft_type: str
    """`peft.TaskType` of an adapter for it."""
    tokenizer_kind: str
    """Special tokens of `tokenizer: train`: encoder, decoder or seq2seq."""
    label_column: str | None
    """Column whose values become classes, or None."""
    single_class: bool
    """Has each row exactly one class, so that always answering the most frequent one is a score to beat?"""
    generates: bool
    """Does evaluation generate text?"""
    rows_weigh: bool
    """Is the loss a mean over rows? Else over the tokens that are predicted (labels other than `IGNORED`)."""
    drops_out: bool
    """Is the model trained with its dropout?"""

    @property
    def scores_tokens(self) -> bool:
        """Is the loss made of those of tokens, so that it can be computed without logits?"""

    scores_labels: bool
    """Do the figures read labels? Else evaluation need not keep them."""
    shifts_labels: bool
    """Does the model predict the next token, so that the first label of a row is not predicted?"""
    added_tokens: tuple[str, ...]
    """Tokens that are added to the tokenizer, and to the model's embeddings, where the tokenizer lacks them."""
    reads_words: bool
    """Are texts lists of words, so that a tokenizer must know a word without the space before it?"""
    joins_rows: bool
    """Are the rows of tokens that one row of data has become predicted and scored together? They are its features then,
    in the words of transformers' examples, and counted beside the rows.
    """
    figures_read: tuple[str, ...]
    """Columns of the token store that figures read besides predictions and labels."""
    token_inputs: tuple[str, ...]
    """Arrays of `collate` that hold tokens of the rows' texts."""
    fills_rows: bool
    """Have rows of the token store padding of their own, between sequences that are filled up to a length?"""
    compares_rows: bool
    """Is the loss of a row one of the other rows of its global batch, too? Its vectors are then shared by all ranks
    (`distributed.row_pool`).
    """

    @property
    def only_models(self) -> tuple[str, ...]:
        """The model types that can be trained for it; empty: all of `auto_mapping`."""

    compared_inputs: tuple[str, ...]
    """With `compares_rows`: arrays of `collate` that the loss reads of all rows, besides vectors."""

    def required_columns(self) -> list[str]:
        """Columns every row must have."""

    def check_row(self, values: dict[str, Any]) -> str | None:
        """Why a row is bad, or None."""

    def texts(self, values: dict[str, Any]) -> Iterator[str]:
        """The texts of a good row, for the training of a tokenizer."""

    def check_tokenizer(self, tokenizer: Any) -> str | None:
        """What the tokenizer lacks for this task, or None."""

    def check_labels(self, labels: list[str]) -> Problem | None:
        """What is wrong with the classes of the training rows, or None."""

    def packing(self, max_length: int) -> Packing | None:
        """How rows are packed into blocks, or None: a row is a row."""

    def lengths(self, max_length: int, split: str) -> Lengths:
        """What the rows of a split are truncated to."""

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        """Tokenize good rows into columns of token ids, one list for each row. A row's length is that of `input_ids`.
        The columns that `tasks/truncation.py` names hold the number of tokens before truncation.
        """

    def encode_rows(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Encoded:
        """`encode`, and which rows cannot be encoded or have no token that the loss would cover."""

    def refusal(self, error: Exception) -> str:
        """Why a row cannot be encoded, of what was raised."""

    def check_lengths(self, lengths: Lengths, tokenizer: Any) -> Problem | None:
        """Why rows of these lengths cannot be encoded, or None."""

    def spread_note(self, count: int, data_rows: int, rows: int) -> str:
        """What to tell of a split in which `count` rows of data have become several rows of tokens.

        Args:
            data_rows: rows of data in all.
            rows: rows of tokens in all.
        """

    def classes(self, columns: Columns) -> Iterable[str]:
        """The classes in encoded rows, one for each time it occurs; nothing where `label_column` is None."""

    def collate(self, columns: Columns, context: CollateContext, place: Place) -> dict[str, np.ndarray]:
        """Pad rows of the token store to inputs of the model: integer arrays [rows, longest row]; `labels` as the model
        takes them.
        """

    def model_kwargs(self, labels: list[str]) -> dict[str, Any]:
        """Arguments of the model class that come from the task."""

    def special_tokens(self, tokenizer: Any) -> dict[str, Any]:
        """Token ids in the config of a model from scratch, besides padding."""

    def apply_to_model(self, model: Any, tokenizer: Any) -> None:
        """Set what the task needs in a loaded model's configuration."""

    def files_beside(self, model_config: Any, max_length: int) -> dict[str, Any]:
        """Files that an exported model has besides those of transformers: path in its folder -> JSON value.

        Args:
            model_config: of the model.
            max_length: `data.max_length`.
        """

    def forward_kwargs(self) -> dict[str, Any]:
        """Arguments of every forward besides the tensors."""

    def build_objective(self) -> Objective | None:
        """The loss, where the model does not compute it from `labels`. Evaluation then keeps its values, in place of
        what `reduce_logits` makes of logits.
        """

    def precomputes_reference(self, lora: dict[str, Any] | None) -> bool:
        """Does the loss read what a reference model says of the rows, and is that computed before training?

        Args:
            lora: the job's `lora:` section.
        """

    def reduce_logits(self, logits: Any, labels: Any) -> Any:
        """`preprocess_logits_for_metrics`: what evaluation keeps of a batch's logits; torch tensors with rows first.
        Where that is several of them, the user's own `compute_metrics` gets the logits.
        """

    def join_predictions(self, predictions: Any, truth: Any, columns: Columns) -> Any:
        """Where `figures_read` names columns: what `build_metrics`, `build_report` and `score_rows` get as predictions.

        Args:
            predictions: what `reduce_logits` returned, of all rows of tokens in order.
            truth: their labels.
            columns: their columns in the token store.
        """

    def joint_loss(self, predictions: Any, truth: Any, batch_rows: int) -> float | None:
        """The loss of an evaluation where it is none of single rows, but of batches of rows, which it divides all rows
        into; None: it is the mean over rows or predicted tokens.

        Args:
            predictions: as `build_metrics` gets them.
            truth: labels.
            batch_rows: rows of a global batch of the training.
        """

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Callable[[Any], Metrics]:
        """A `compute_metrics` in Hugging Face's sense; names without the `eval_` prefix. `losses` holds the mean
        loss.
        """

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        """The names of these figures; where `labels` are not known yet (None), of all that may be, `*` for any text."""

    def loss_figures(self, loss: float) -> Metrics:
        """The figures that follow from the mean loss alone; all there is with `prediction_loss_only`."""

    def build_report(self, predictions: Any, truth: Any, labels: list[str]) -> dict[str, Any]:
        """Figures of each class and the confusion matrix, where there are classes; what `compute_metrics` gets."""

    def score_rows(self, predictions: Any, truth: Any, labels: list[str], tokenizer: Any) -> Iterator[dict[str, Any]]:
        """What evaluation found for each row, in order: plain values."""

    # Rows that are predicted and have no label

    writes_text: bool
    """Are predictions texts that the model generates, token by token?"""
    prediction_columns: tuple[str, ...]
    """Keys of the dict that `predictions` yields for each row."""
    input_choice: tuple[str, ...]
    """Columns of which a row must have one, beside `input_columns`."""
    beside_inputs: tuple[str, ...]
    """Arrays of `collate_inputs` that the model does not take: `predictions` and `predict_row` find them among the
    outputs.
    """

    def input_columns(self) -> list[str]:
        """Columns a row must have."""

    def check_input(self, values: dict[str, Any]) -> str | None:
        """Why no prediction is possible for a row, or None."""

    def encode_inputs(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        """Good rows to token columns, `input_ids` among them."""

    def encode_input_rows(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Encoded:
        """The same, and which row each row of tokens is of."""

    def read_beside(self, values: dict[str, Any]) -> str | None:
        """What `predict_row` reads of a good row besides its tokens."""

    def collate_inputs(self, columns: Columns, context: CollateContext) -> dict[str, np.ndarray]:
        """The padded inputs of the model; shapes [rows, longest row]."""

    def outputs(self, model: Any, inputs: dict[str, Any], tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
        """What `predictions` reads of a batch: tensors with rows first, left on the model's device, since reading a
        value there would wait for it. Of numbers float32 or integers.

        Args:
            inputs: int64 tensors [rows, longest row] of `collate_inputs`, on the model's device.
            generation: keyword arguments of `model.generate`, for tasks that generate text.
        """

    def predictions(
        self, outputs: dict[str, np.ndarray], labels: list[str], tokenizer: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield a dict of plain values for each row of `outputs`, in order, with the same keys for all rows."""

    def predict_row(self, features: list[dict[str, np.ndarray]], beside: str) -> dict[str, Any]:
        """Where rows are joined, instead of `predictions`: the prediction of a row of data, with the same keys for all.

        Args:
            features: of each of its rows of tokens what `outputs` returned.
            beside: what `read_beside` returned.
        """


class TaskDefaults:
    """The answers of a task without classes, packing and generation."""

    float32_weights = False
    label_column: str | None = None
    single_class = False
    generates = False
    writes_text = False
    rows_weigh = False
    drops_out = True
    scores_labels = True
    shifts_labels = False
    added_tokens: tuple[str, ...] = ()
    reads_words = False
    joins_rows = False
    figures_read: tuple[str, ...] = ()
    token_inputs: tuple[str, ...] = ("input_ids",)
    fills_rows = False
    compares_rows = False
    compared_inputs: tuple[str, ...] = ()

    @property
    def only_models(self) -> tuple[str, ...]:
        return ()

    tokenizer_kind = "encoder"
    prediction_columns: tuple[str, ...] = ("prediction",)
    input_choice: tuple[str, ...] = ()
    beside_inputs: tuple[str, ...] = ()

    @property
    def scores_tokens(self) -> bool:
        return not self.rows_weigh

    def required_columns(self) -> list[str]:
        raise NotImplementedError

    def check_tokenizer(self, tokenizer: Any) -> str | None:
        return None

    def check_labels(self, labels: list[str]) -> Problem | None:
        return None

    def packing(self, max_length: int) -> Packing | None:
        return None

    def lengths(self, max_length: int, split: str) -> Lengths:
        return Lengths(max_length)

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        raise NotImplementedError

    def encode_rows(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Encoded:
        """A row that the tokenizer or its template takes for wrong is a bad row by itself."""
        try:
            return self.encoded(rows, tokenizer, lengths)
        except Exception as error:  # noqa: BLE001 - a template raises whatever it likes
            if len(rows) == 1:
                return Encoded({}, [], {0: self.refusal(error)})
            return join_encoded([self.encode_rows([row], tokenizer, lengths) for row in rows])

    def encoded(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Encoded:
        """`encode`, a row of tokens for each row."""
        return Encoded(self.encode(rows, tokenizer, lengths), list(range(len(rows))))

    def refusal(self, error: Exception) -> str:
        """Why a row cannot be encoded, of what was raised."""
        return f"cannot be tokenized ({type(error).__name__}: {' '.join(str(error).split())[:200]})"

    def check_lengths(self, lengths: Lengths, tokenizer: Any) -> Problem | None:
        return None

    def spread_note(self, count: int, data_rows: int, rows: int) -> str:
        return f"{count:,} of {data_rows:,} rows have become several, {rows:,} rows in all."

    def classes(self, columns: Columns) -> Iterable[str]:
        return ()

    def model_kwargs(self, labels: list[str]) -> dict[str, Any]:
        return {}

    def special_tokens(self, tokenizer: Any) -> dict[str, Any]:
        return {}

    def apply_to_model(self, model: Any, tokenizer: Any) -> None:
        pass

    def files_beside(self, model_config: Any, max_length: int) -> dict[str, Any]:
        return {}

    def forward_kwargs(self) -> dict[str, Any]:
        return {}

    def build_objective(self) -> Objective | None:
        return None

    def precomputes_reference(self, lora: dict[str, Any] | None) -> bool:
        return False

    def reduce_logits(self, logits: Any, labels: Any) -> Any:
        return logits[0] if isinstance(logits, tuple) else logits

    def join_predictions(self, predictions: Any, truth: Any, columns: Columns) -> Any:
        return predictions

    def joint_loss(self, predictions: Any, truth: Any, batch_rows: int) -> float | None:
        return None

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        """Those of language models."""
        return ("accuracy", "perplexity")

    def loss_figures(self, loss: float) -> Metrics:
        return {}

    def build_report(self, predictions: Any, truth: Any, labels: list[str]) -> dict[str, Any]:
        return {}

    def score_rows(self, predictions: Any, truth: Any, labels: list[str], tokenizer: Any) -> Iterator[dict[str, Any]]:
        """Of language models, which keep two counts of each row."""
        predictions = (
            predictions[0] if isinstance(predictions, tuple) else predictions
        )  # beside them, what the user's own figures read
        yield from (
            {"tokens": int(counted), "accuracy": float(right / max(counted, 1))} for right, counted in predictions
        )

    def input_columns(self) -> list[str]:
        return self.required_columns()

    def check_input(self, values: dict[str, Any]) -> str | None:
        return next((reason for column in self.input_columns() if (reason := check_text(values, column))), None)

    def encode_inputs(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        raise NotImplementedError

    def encode_input_rows(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Encoded:
        return Encoded(self.encode_inputs(rows, tokenizer, lengths), list(range(len(rows))))

    def read_beside(self, values: dict[str, Any]) -> str | None:
        return None

    def predictions(
        self, outputs: dict[str, np.ndarray], labels: list[str], tokenizer: Any
    ) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def predict_row(self, features: list[dict[str, np.ndarray]], beside: str) -> dict[str, Any]:
        raise NotImplementedError

    def collate_inputs(self, columns: Columns, context: CollateContext) -> dict[str, np.ndarray]:
        rows, side = columns["input_ids"], context.padding_side
        batch = {"input_ids": pad(rows, context.pad_token_id, side), "attention_mask": attention_mask(rows, side)}
        if "token_type_ids" in columns and "token_type_ids" in context.model_inputs:
            batch["token_type_ids"] = pad(columns["token_type_ids"], context.pad_token_type_id, side).astype(np.int8)
        return batch


def join_encoded(parts: list[Encoded]) -> Encoded:
    """Join the results of encoding single rows into one, in order. `parts[i]` is the result for row `i` alone."""
    columns: Columns = {}
    for part in parts:
        for name, values in part.columns.items():
            columns.setdefault(name, []).extend(values)
    rows = [place for place, part in enumerate(parts) for _ in part.rows]
    told = (
        {place: reason for place, part in enumerate(parts) for reason in of(part).values()}
        for of in (lambda part: part.refused, lambda part: part.unlearned)
    )
    return Encoded(columns, rows, *told)


def check_text(values: dict[str, Any], column: str) -> str | None:
    """Why a field is no text, or None."""
    if column not in values:
        return f"field '{column}' is missing"
    if values[column] is None:
        return f"field '{column}' is null"
    if not isinstance(values[column], str):
        return f"field '{column}' is {type(values[column]).__name__}, not text"
    return None if values[column].strip() else f"field '{column}' is empty"


def unicode_text(text: str) -> str:
    """Text a tokenizer takes: a lone surrogate is valid JSON, and no Unicode text."""
    return text.encode("utf-8", "replace").decode("utf-8")


def pad(rows: list[np.ndarray], value: int, side: str) -> np.ndarray:
    """Rows of tokens to one int32 array [rows, longest row], filled up with `value` on `side`."""
    width = max(len(row) for row in rows)
    padded: np.ndarray = np.full((len(rows), width), value, dtype=np.int32)
    for i, row in enumerate(rows):
        if side == "left":
            padded[i, width - len(row) :] = row
        else:
            padded[i, : len(row)] = row
    return padded


def attention_mask(rows: list[np.ndarray], side: str) -> np.ndarray:
    """1 for tokens, 0 for padding: int8 [rows, longest row]."""
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int8)
    return mask[:, ::-1].copy() if side == "left" else mask
