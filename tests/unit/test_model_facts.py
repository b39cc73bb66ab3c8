"""What models and tokenizers lack or limit: positions, padding, spelt special tokens, outputs beside the logits; rows
that are cut are counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from raytrain_nlp.config import load_job
from raytrain_nlp.config.model import ModelConfig, TokenizerTraining
from raytrain_nlp.data.prepare import prepare_tokens
from raytrain_nlp.data.reading.sources import find_files
from raytrain_nlp.data.shards import TokenStore
from raytrain_nlp.data.tokenize import PrepareSpec
from raytrain_nlp.errors import InputError
from raytrain_nlp.modeling.configuration import build_model_config, load_config
from raytrain_nlp.modeling.facts import ModelFacts, find_facts, find_positions, fit_generation
from raytrain_nlp.modeling.tokenizer import add_padding, cache_tokenizer, check_local_model, train_tokenizer
from raytrain_nlp.planning.models import model_facts
from raytrain_nlp.planning.split_plans import build_context
from raytrain_nlp.planning.truncation import cut_lengths, cut_notes, cut_rows
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import Lengths
from raytrain_nlp.trainer.eval_outputs import NamedLogits

WORDS = "ada bell curie darwin euler fermi gauss hopper"
CLASSIFY = {"type": "text-classification", "text_columns": ["text"]}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    cache = tmp_path_factory.mktemp("tokenizers")
    return {
        kind: train_tokenizer([WORDS], TokenizerTraining(vocab_size=300), kind, kind, cache, None)
        for kind in ("encoder", "decoder", "seq2seq")
    }


def job_of(task: dict[str, Any], config: dict[str, Any] | None = None, **data: Any) -> Any:
    model = {"config": config or {"model_type": "bert"}, "tokenizer": "train"}
    return load_job(
        {
            "name": "run",
            "task": task,
            "model": model,
            "data": {"train": "train.jsonl", **data},
            "workers": {"num_workers": 1},
        }
    )


def task_of(values: dict[str, Any]) -> Any:
    return build_task(job_of(values).task)


# Positions


@pytest.mark.parametrize(("config", "positions"), [
    ({"model_type": "bert", "max_position_embeddings": 16}, 16), ({"model_type": "roberta", "max_position_embeddings": 16, "pad_token_id": 1}, 14),  # noqa: E501
    ({"model_type": "roberta", "max_position_embeddings": 16, "pad_token_id": 0}, 15), ({"model_type": "mpnet", "max_position_embeddings": 16, "pad_token_id": 0}, 14),  # noqa: E501
    ({"model_type": "gpt2", "n_positions": 16}, 16), ({"model_type": "opt", "max_position_embeddings": 16}, 16), ({"model_type": "gptj", "n_positions": 16}, 16),  # noqa: E501
    ({"model_type": "bart", "max_position_embeddings": 16}, 16), ({"model_type": "marian", "max_position_embeddings": 16}, 16),  # noqa: E501
    ({"model_type": "led", "max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 16}, 32),
    ({"model_type": "t5"}, None), ({"model_type": "m2m_100", "max_position_embeddings": 16}, None), ({"model_type": "llama", "max_position_embeddings": 16}, None),  # noqa: E501
    ({"model_type": "bloom"}, None), ({"model_type": "mamba"}, None), ({"model_type": "deberta-v2", "position_biased_input": False}, None),  # noqa: E501
    ({"model_type": "xlnet"}, None), ({"model_type": "fsmt", "max_position_embeddings": 16}, None),
])  # fmt: skip
def test_how_many_tokens_a_row_may_have(config: dict[str, Any], positions: int | None) -> None:
    assert find_positions(AutoConfig.for_model(**config))[0] == positions


def test_a_decoder_may_have_fewer_positions() -> None:
    config = AutoConfig.for_model("led", max_encoder_position_embeddings=32, max_decoder_position_embeddings=16)
    assert find_positions(config) == (32, 16)
    arguments = type("Arguments", (), {"generation_max_length": 128})()
    fit_generation(arguments, config)
    assert arguments.generation_max_length == 16


def test_rows_are_cut_to_the_positions_and_blocks_refused(tokenizers: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizers["decoder"])
    small = {"model_type": "gpt2", "n_positions": 16, "n_embd": 32, "n_layer": 1, "n_head": 2}
    facts = model_facts(job_of({"type": "causal-lm", "packing": "none"}, small, max_length=64), tokenizer)
    assert (
        facts.fitted(Lengths(64)).source == 16
        and facts.fitted(Lengths(8)).source == 8
        and facts.fitted(Lengths(None)).source is None
    )
    for task, where in (
        ({"type": "causal-lm"}, "data.max_length"),
        ({"type": "causal-lm", "block_size": 32}, "task.block_size"),
    ):
        with pytest.raises(
            InputError,
            match=rf"^{where}: is more than the model's 16 positions \((64|32)\). Set task.block_size to at most 16",
        ):
            model_facts(job_of(task, small, max_length=64), tokenizer)


# Rows that are cut


@pytest.mark.parametrize(("task", "kind"), [
    (CLASSIFY, "encoder"), ({**CLASSIFY, "text_columns": ["text", "other"]}, "encoder"), ({"type": "masked-lm", "line_by_line": True}, "encoder"),  # noqa: E501
    ({"type": "causal-lm", "packing": "none"}, "decoder"), ({"type": "causal-lm", "prompt_column": "other", "completion_column": "text"}, "decoder"),  # noqa: E501
    ({"type": "summarization", "summary_column": "other", "max_target_length": 6}, "seq2seq"),
])  # fmt: skip
def test_cut_rows_are_counted_with_the_tokens_they_had(
    tokenizers: dict[str, Path], tmp_path: Path, task: dict[str, Any], kind: str
) -> None:
    tokenizer, config = AutoTokenizer.from_pretrained(tokenizers[kind]), job_of(task).task
    rows = [{"text": " ".join(["ada"] * n), "other": "bell curie", "label": n % 2} for n in (2, 5, 40, 3, 60)] + [
        {"text": "gauss", "other": "bell " * 30, "label": 0}
    ]
    rows = rows[:-1] if "prompt_column" in task else rows  # of which nothing would be left to learn
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths, whole = [build_task(config).lengths(length, "train") for length in (12, 10_000)]
    whole = Lengths(whole.source, None if whole.target is None else 10_000)
    full = build_task(config).encode(rows, tokenizer, whole)
    prepare = PrepareSpec(config, str(tokenizers[kind]), "key", lengths, 0.0)
    manifest = TokenStore(
        prepare_tokens(
            find_files([str(tmp_path / "train.jsonl")], "data.train"), prepare, tmp_path / "tokens", map, "data.train"
        )
    ).manifest
    truth = [len(row) for row in full["input_ids"] if len(row) > 12]
    targets = [len(row) for row in full.get("labels", []) if len(row) > 6]
    assert sorted(int(length) for length, count in manifest["cut"].items() for _ in range(count)) == sorted(truth)
    assert sorted(int(length) for length, count in manifest["cut_targets"].items() for _ in range(count)) == sorted(
        targets
    )
    assert cut_rows(manifest) == len(truth) + len(targets) and cut_lengths(manifest)["longest_before"] == max(truth)
    first = cut_notes("train", manifest, ModelFacts(positions=12))[0]
    assert (
        first
        == f"{len(truth)} of {len(rows)} rows of data.train have more than 12 tokens, the model's positions, and are "
        f"cut; the longest has {max(truth)}."
    )
    assert "positions" not in cut_notes("train", manifest, ModelFacts())[0]


# Tokenizers


def bare_tokenizer(folder: Path, **special: str) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*WORDS.split(), "unk"])}, unk_token="unk"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    return folder


def test_a_tokenizer_without_padding_gets_a_token_for_it(tmp_path: Path) -> None:
    plain, ended = (
        AutoTokenizer.from_pretrained(bare_tokenizer(tmp_path / name, **special))
        for name, special in (("plain", {}), ("ended", {"eos_token": "unk"}))
    )
    for tokenizer in (plain, ended):
        add_padding(tokenizer)
    assert ended.pad_token_id == ended.eos_token_id and len(ended) == 9
    assert plain.pad_token_id == 9 and len(plain) == 10, "a new one: the model gets a row for it"
    context = build_context(plain, [], ModelFacts())
    assert context.pad_token_id == 9


@pytest.mark.parametrize("kind", ["summarization", "translation"])
def test_a_decoder_needs_a_token_that_ends_a_text(tmp_path: Path, kind: str) -> None:
    languages = {"source_lang": "en", "target_lang": "de"} if kind == "translation" else {}
    assert "no end-of-sequence token" in task_of({"type": kind, **languages}).check_tokenizer(
        AutoTokenizer.from_pretrained(bare_tokenizer(tmp_path))
    )


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("bert", hidden_size=32).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").touch()
    with pytest.raises(InputError, match="the folder has no tokenizer"):
        check_local_model(str(tmp_path / "bert"), "model.name_or_path", tokenizer=True)
    check_local_model(str(tmp_path / "bert"), "model.name_or_path")
    (tmp_path / "bert" / "tokenizer_config.json").write_text(
        "{}"
    )  # names no vocabulary: transformers makes up one of special tokens
    with pytest.raises(InputError, match="tokenizer"):
        cache_tokenizer(ModelConfig(name_or_path=str(tmp_path / "bert")), tmp_path / "cache")


# Special tokens spelt in texts


@pytest.mark.parametrize("columns", [["text"], ["text", "other"]])
@pytest.mark.parametrize("kind", ["encoder", "seq2seq"])
def test_a_token_the_head_counts_is_text_where_a_text_spells_it(
    tokenizers: dict[str, Path], columns: list[str], kind: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizers[kind])
    mark = "[SEP]" if kind == "encoder" else "</s>"
    end, task = tokenizer.convert_tokens_to_ids(mark), task_of({**CLASSIFY, "text_columns": columns})
    rows = [
        {"text": "ada bell", "other": "curie"},
        {"text": f"ada {mark} bell{mark}", "other": mark},
        {"text": f"{mark} " * 30, "other": f"euler {mark}"},
    ]
    made = task.encode_inputs(rows, tokenizer, Lengths(24, None, end))
    assert (
        [row.count(end) for row in made["input_ids"]] == [len(columns)] * 3
        if kind == "encoder"
        else len({row.count(end) for row in made["input_ids"]}) == 1
    )
    widths = [len(row) for row in made["input_ids"]]
    assert max(widths) <= 24 and [len(row) for row in made.get("token_type_ids", made["input_ids"])] == widths
    as_token = task.encode_inputs(rows, tokenizer, Lengths(24))["input_ids"]
    assert as_token[0] == made["input_ids"][0] and as_token[1] != made["input_ids"][1], (
        "elsewhere it stays what it is in transformers"
    )


@pytest.mark.parametrize(
    ("model_type", "counts"),
    [("bart", True), ("mbart", True), ("t5", True), ("mvp", True), ("bert", False), ("gpt2", False), ("llama", False)],
)
def test_whose_heads_count_it(model_type: str, counts: bool) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as HEADS

    config = AutoConfig.for_model(model_type, eos_token_id=5)
    assert find_facts(config, HEADS[model_type]).ends == (5 if counts else None)


# Configs


def test_an_encoder_decoder_from_scratch_knows_what_its_decoder_starts_with(tokenizers: dict[str, Path]) -> None:
    tokenizer, task = AutoTokenizer.from_pretrained(tokenizers["encoder"]), task_of(CLASSIFY)
    t5, bart, bert = (
        build_model_config(ModelConfig(config={"model_type": name}, tokenizer="train"), task, ["a", "b"], tokenizer)
        for name in ("t5", "bart", "bert")
    )
    assert t5.decoder_start_token_id == tokenizer.pad_token_id and t5.eos_token_id == tokenizer.sep_token_id
    assert bart.decoder_start_token_id == bart.eos_token_id == tokenizer.sep_token_id
    assert getattr(bert, "decoder_start_token_id", None) is None


@pytest.mark.parametrize("config", [
    {"model_type": "bert", "hidden_size": "wide"}, {"model_type": "llama", "rope_parameters": {"rope_type": "no such"}}, {"model_type": "gemma2", "layer_types": ["x"]},  # noqa: E501
])  # fmt: skip
def test_a_config_its_family_refuses_is_one_line(tokenizers: dict[str, Path], config: dict[str, Any]) -> None:
    task, tokenizer = task_of(CLASSIFY), AutoTokenizer.from_pretrained(tokenizers["encoder"])
    try:
        load_config(ModelConfig(config=config, tokenizer="train"), task, tokenizer)
    except InputError as error:
        assert str(error).startswith("model.config: is refused by its family") and "\n" not in str(error)


@pytest.mark.parametrize("config", [
    {"model_type": "bert", "hidden_size": 33, "num_attention_heads": 2}, {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 0},  # noqa: E501
    {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2, "hidden_act": "no such"},
])  # fmt: skip
def test_a_model_its_family_does_not_build_is_one_line(tokenizers: dict[str, Path], config: dict[str, Any]) -> None:
    from raytrain_nlp.modeling.model import build_empty_model

    with pytest.raises(InputError, match=r"^model.config: is refused by its family \(bert: .*\). Correct the values.$"):
        build_empty_model(
            ModelConfig(config=config, tokenizer="train"),
            task_of(CLASSIFY),
            ["a", "b"],
            AutoTokenizer.from_pretrained(tokenizers["encoder"]),
        )


@pytest.mark.parametrize(("config", "reads"), [
    ({"model_type": "bert"}, True), ({"model_type": "roberta", "type_vocab_size": 1}, False), ({"model_type": "distilbert"}, False), ({"model_type": "t5"}, False),  # noqa: E501
])  # fmt: skip
def test_which_models_tell_two_texts_apart(tokenizers: dict[str, Path], config: dict[str, Any], reads: bool) -> None:
    facts = find_facts(AutoConfig.for_model(**config), None)
    context = build_context(AutoTokenizer.from_pretrained(tokenizers["encoder"]), [], facts)
    assert facts.token_types is reads and ("token_type_ids" in context.model_inputs) is reads


# Figures and losses


def test_logits_are_picked_by_name_and_stand_first() -> None:
    logits, states = torch.ones(2, 3), torch.ones(2, 5, 4)
    moe = {
        "loss": torch.tensor(1.0),
        "aux_loss": torch.tensor(0.1),
        "logits": logits,
        "router_logits": (torch.ones(10, 4),),
    }
    classifier = {"loss": torch.tensor(1.0), "logits": logits, "encoder_last_hidden_state": states}
    for outputs, behind in ((moe, 1), (classifier, 1)):
        model, named = torch.nn.Identity(), NamedLogits()
        with named.watching(model):
            model(outputs)
            found = named.first(
                tuple(
                    value.detach() if isinstance(value, torch.Tensor) else value
                    for name, value in outputs.items()
                    if name != "loss"
                )
            )
            assert found[0] is not None and torch.equal(found[0], logits) and len(found) == 1 + behind
            assert named.first(logits) is logits, "alone, or generated"
        assert named.first((states, logits)) == (states, logits), "outside it says nothing"


@pytest.mark.parametrize(("task", "refused"), [
    ({"problem_type": "regression"}, True), ({"glue": "stsb"}, True), ({"problem_type": "multi_label_classification"}, True), ({}, False), ({"glue": "mrpc"}, False),  # noqa: E501
])  # fmt: skip
def test_smoothing_needs_one_class_a_row(task: dict[str, Any], refused: bool) -> None:
    job = {
        "name": "run",
        "task": {"type": "text-classification", **task},
        "model": {"name_or_path": "x"},
        "data": {"train": "x"},
    }
    job["training"] = {"label_smoothing_factor": 0.1}
    if not refused:
        assert load_job(job)
        return
    with pytest.raises(InputError, match="training.label_smoothing_factor: needs one class a row"):
        load_job(job)
