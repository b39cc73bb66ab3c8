"""Preference data: rows, tokens, losses and figures, beside TRL's own code; what contradicts each other. Whole runs:
tests/integration/test_preference_tuning.py, tests/cluster/test_preference_runs.py.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from preference_truth import labelled_rows, pair_rows, write_start

from raytrain_nlp.config import load_job
from raytrain_nlp.config.lora import keeps_base
from raytrain_nlp.config.tasks.preference import Preference, RewardModeling
from raytrain_nlp.errors import InputError
from raytrain_nlp.modeling.model import disable_dropout
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext, Lengths, Place
from raytrain_nlp.tasks.objective import REFERENCE, joined_figures, joined_loss
from raytrain_nlp.tasks.preference.log_probabilities import quiet, score_by_reference, score_completions
from raytrain_nlp.tasks.preference.losses import PAIR_LOSSES
from raytrain_nlp.tasks.preference.objectives import build_objective
from raytrain_nlp.tasks.preference.preference_task import PreferenceTask
from raytrain_nlp.tasks.preference.reward_modeling import RewardModelingTask
from raytrain_nlp.tasks.preference.rows import read_pair, split_prompt
from raytrain_nlp.tasks.preference.sequences import join_sequences, stack_sequences

SMOOTHED = ("robust", "exo_pair")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_start(tmp_path_factory.mktemp("start"))


def preference(**values: Any) -> Preference:
    return Preference(type="preference", **values)


def tokens_of(task: Any, rows: list[dict[str, Any]], tokenizer: Any, length: int | None = 32) -> dict[str, Any]:
    """The batch of rows, as the feed makes it; int64 tensors."""
    columns = task.encode_rows(rows, tokenizer, Lengths(length)).columns
    context = CollateContext(tokenizer.pad_token_id, 0, "right", ["input_ids", "attention_mask"], [])
    made = task.collate(columns, context, Place(0, 0, np.arange(len(rows))))
    return {name: torch.from_numpy(array).long() for name, array in made.items()}


# Rows


@pytest.mark.parametrize("chats", [False, True])
def test_tokens_are_those_of_dpo_trainer(tokenizer: Any, chats: bool) -> None:
    from trl import extract_prompt
    from trl.data_utils import _tokenize, common_prefix_length
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    rows = pair_rows(40, 3, chats)
    ours = tokens_of(PreferenceTask(preference()), rows, tokenizer, 72 if chats else 32)
    examples = []
    for row in rows:
        row = extract_prompt(row) if chats else row
        end = [] if chats else tokenizer.eos_token
        more = {"add_generation_prompt": True} if chats else {}
        prompt = _tokenize(tokenizer, row["prompt"], **more)["input_ids"]
        whole = [_tokenize(tokenizer, row["prompt"] + row[name] + end)["input_ids"] for name in ("chosen", "rejected")]
        start = min(common_prefix_length(prompt, ids) for ids in whole)
        examples.append(
            {"prompt_ids": prompt[:start], "chosen_ids": whole[0][start:], "rejected_ids": whole[1][start:]}
        )
    theirs = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id, max_length=72 if chats else 32)(examples)
    for name in ("input_ids", "attention_mask", "completion_mask"):
        assert torch.equal(ours[name].transpose(0, 1).reshape(80, -1), theirs[name])


def test_prompts_within_texts_are_found_as_by_trl() -> None:
    from trl import extract_prompt

    for chosen, rejected in (
        ("The sky is blue.", "The sky is green."),
        ("abc", "xyz"),
        ("one two", "one three four"),
    ):
        theirs = extract_prompt({"chosen": chosen, "rejected": rejected})
        assert split_prompt(chosen, rejected) == tuple(theirs[name] for name in ("prompt", "chosen", "rejected"))
    assert split_prompt("same", "same") == ("same", "", "")
    assert read_pair({"prompt": "p", "chosen": "pa", "rejected": "pb"}, "prompt", "chosen", "rejected")[1] == "pa"


def test_rows_that_cannot_be_used(tokenizer: Any) -> None:
    task = PreferenceTask(preference())
    chat = [{"role": "user", "content": "a"}]
    assert task.check_row({"prompt": "a", "chosen": "b", "rejected": "c"}) is None
    assert task.check_row({"chosen": "a b", "rejected": "a c"}) is None
    for row, reason in (
        ({"prompt": "a", "chosen": "b"}, "field 'rejected' is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "field 'rejected' is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": [{"role": "assistant", "content": "c"}]}, "where the row's other"),
        ({"prompt": chat, "chosen": "b", "rejected": "c"}, "not a list of messages"),
        ({"prompt": [{"role": "assistant", "content": "b"}], "chosen": chat, "rejected": chat}, "no message to answer"),
        ({"chosen": chat, "rejected": chat}, "no message of the assistant"),
    ):
        assert reason in (task.check_row(row) or ""), row
    kto = PreferenceTask(preference(loss_type="kto"))
    assert kto.check_row({"prompt": "a", "completion": "b", "label": "False"}) is None
    assert kto.check_row({"prompt": "a", "completion": "b", "label": 2}) == "field 'label' is 2, not true or false"
    assert (
        kto.check_row({"prompt": "a", "completion": "b", "label": None}) == "field 'label' is null, not true or false"
    )
    assert kto.required_columns() == ["prompt", "completion", "label"]

    words, answer = " ".join(["ada"] * 60), {"role": "assistant", "content": "b"}
    rows = [{"prompt": words, "chosen": " b", "rejected": " c"}, *pair_rows(1, 1)]
    rows.append({"chosen": [*chat, answer], "rejected": [*chat, answer]})
    encoded = task.encode_rows(rows, tokenizer, Lengths(16))
    assert encoded.rows == [1] and encoded.unlearned.keys() == {0, 2}
    assert "behind the first 16 tokens" in encoded.unlearned[0]
    reward = RewardModelingTask(RewardModeling(type="reward-modeling"))
    assert "longer than 16 tokens" in reward.encode_rows(rows[:1], tokenizer, Lengths(16)).unlearned[0]


def test_other_completions_are_those_of_kto_trainer(tokenizer: Any) -> None:
    """Within each group the completions move on by one place, as in the batches of TRL."""
    rows = labelled_rows(21, 5)
    task = PreferenceTask(preference(loss_type="kto", kl_group_size=8))
    batch = tokens_of(task, rows, tokenizer, None)
    texts = [[tokenizer.decode(ids, skip_special_tokens=True) for ids in row] for row in batch["input_ids"]]
    for place, (row, (own, other)) in enumerate(zip(rows, texts, strict=True)):
        first = place - place % 8
        last = min(first + 8, len(rows)) - 1
        donor = rows[place - 1 if place > first else last]
        assert own == row["prompt"] + row["completion"] and other == row["prompt"] + donor["completion"]
    assert batch["labels"].tolist() == [int(row["label"]) for row in rows]
    unpaired = PreferenceTask(preference(loss_type="apo_zero_unpaired"))
    assert tokens_of(unpaired, rows, tokenizer)["input_ids"].shape[:2] == (21, 1)


def test_sequences_of_a_row_are_padded_apart() -> None:
    columns = {**join_sequences([[[1, 2, 3], [1, 4]], [[5], [6]]], 0), "prompt_length": [1, 0]}
    arrays: dict[str, list[Any]] = {name: [np.array(value) for value in values] for name, values in columns.items()}
    batch = stack_sequences(arrays, 9)
    assert batch["input_ids"].tolist() == [[[1, 2, 3], [1, 4, 9]], [[5, 9, 9], [6, 9, 9]]]
    assert batch["completion_mask"].tolist() == [[[0, 1, 1], [0, 1, 0]], [[1, 0, 0], [1, 0, 0]]]
    assert columns["input_ids"][0] == [1, 2, 3, 1, 4, 0]


def test_prompts_are_continued_and_texts_scored(tokenizer: Any) -> None:
    task, lengths = PreferenceTask(preference()), Lengths(32)
    (row,) = pair_rows(1, 4)
    prompt = tokenizer(row["prompt"])["input_ids"]
    assert task.encode_inputs([{"prompt": row["prompt"]}], tokenizer, lengths)["input_ids"] == [prompt]
    (chat,) = pair_rows(1, 4, chats=True)
    assert task.check_input(chat) is None and "missing" in (task.check_input({"text": "a"}) or "")
    (ids,) = task.encode_inputs([chat], tokenizer, lengths)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).endswith("assistant: ")
    reward = RewardModelingTask(RewardModeling(type="reward-modeling"))
    whole = reward.encode_inputs([{"text": "ada bell"}], tokenizer, lengths)["input_ids"][0]
    assert whole == [*tokenizer("ada bell")["input_ids"], tokenizer.eos_token_id]
    assert reward.encode_inputs([{"prompt": "ada", "text": " bell"}], tokenizer, lengths)["input_ids"][0] == whole
    assert reward.check_input({"text": ""}) == "field 'text' is empty"
    scores = [found["score"] for found in reward.predictions({"logits": np.array([[0.5], [-1.0]])}, [], tokenizer)]
    assert scores == [0.5, -1.0]


# Losses


class Accelerator:
    """One rank."""

    device = torch.device("cpu")

    def gather_for_metrics(self, value: Any) -> Any:
        return value

    gather = gather_for_metrics


def same_tensors(rows: int, length: int) -> dict[str, Any]:
    """Log-probabilities [2 * rows, tokens], chosen rows first, and the mask of their completions."""
    draw = torch.Generator().manual_seed(1)
    mask = torch.zeros(2 * rows, length + 1, dtype=torch.long)
    for row in range(2 * rows):
        start = int(torch.randint(1, 4, (), generator=draw))
        mask[row, start : start + int(torch.randint(1, length - 3, (), generator=draw))] = 1
    logps = -torch.rand(2 * rows, length, generator=draw) * mask[:, 1:]
    reference = -torch.rand(2, rows, generator=draw) * 4
    return {"mask": mask, "logps": logps, "reference": reference}


@pytest.mark.parametrize("loss_type", PAIR_LOSSES)
def test_losses_and_figures_are_those_of_dpo_trainer(loss_type: str) -> None:
    from trl import DPOTrainer

    rows, made = 6, same_tensors(6, 9)
    smoothing = 0.1 if loss_type in SMOOTHED else 0.0
    outputs = SimpleNamespace(log_probs=made["logps"], entropy=made["logps"], mean_logits=made["logps"])
    outputs.is_top1 = torch.zeros_like(made["logps"], dtype=torch.bool)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=Accelerator(), aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, loss_types=[loss_type], loss_weights=[1.0], beta=0.3, label_smoothing=smoothing,
        f_divergence_type="reverse_kl", use_weighting=False, _metrics={"train": defaultdict(list)},
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.ones_like(made["mask"]),
        "attention_mask": torch.ones_like(made["mask"]),
        "completion_mask": made["mask"],
        "ref_chosen_logps": made["reference"][0],
        "ref_rejected_logps": made["reference"][1],
    }
    expected = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)

    objective = build_objective(preference(loss_type=loss_type, beta=0.3, label_smoothing=smoothing))
    logps, tokens = made["logps"].sum(1).view(2, rows).T, made["mask"].sum(1).view(2, rows).T
    values = torch.cat([logps, made["reference"].T, tokens], dim=1)
    assert objective.loss(values, None).item() == pytest.approx(expected.item(), rel=1e-5)
    assert joined_loss(objective, values.numpy()) == pytest.approx(expected.item(), rel=1e-5)
    figures = joined_figures(objective, values.numpy())
    theirs = {name: found[0] for name, found in trainer._metrics["train"].items()}
    assert figures == pytest.approx({name: theirs[name] for name in figures}, rel=1e-5)
    assert figures.keys() == set(PreferenceTask(preference(loss_type="sigmoid")).metric_names(None))


class Scripted(torch.nn.Module):
    """A model whose logits are those of a table, by token."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(2)))

    def forward(self, input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def test_orpo_weighs_tokens_and_rows_over_the_global_batch(tokenizer: Any) -> None:
    """Two micro-batches of unequal size, each weighed by its rows, make the loss of all rows at once: TRL's."""
    from trl.experimental.orpo import ORPOTrainer

    rows, model = pair_rows(7, 6), Scripted(len(tokenizer))
    task = PreferenceTask(preference(loss_type="orpo", beta=0.5))
    objective = task.build_objective()
    whole = tokens_of(task, rows, tokenizer)
    parts = [{name: tensor[part] for name, tensor in whole.items()} for part in (slice(0, 2), slice(2, 7))]
    sums = objective.batch_sums(model, [(parts[0], 2), (parts[1], 5)])
    losses = [objective.loss(objective.values(model, model, part, False), sums) for part in parts]
    joined = (2 * losses[0] + 5 * losses[1]) / 7
    values = objective.values(model, model, whole, True)
    assert joined.item() == pytest.approx(objective.loss(values, objective.sums_of(values)).item(), rel=1e-5)

    ids, mask = (whole[name].transpose(0, 1).reshape(14, -1) for name in ("input_ids", "completion_mask"))
    attention = whole["attention_mask"].transpose(0, 1).reshape(14, -1)
    batch = {"concatenated_input_ids": ids, "concatenated_attention_mask": attention}
    batch["concatenated_labels"] = ids.masked_fill(mask == 0, -100)
    trainer = SimpleNamespace(
        accelerator=Accelerator(), is_encoder_decoder=False, padding_value=0, aux_loss_enabled=False, beta=0.5,
        concatenated_inputs=lambda *args, **kwargs: batch, get_batch_logps=ORPOTrainer.get_batch_logps,
    )  # fmt: skip
    trainer.concatenated_forward = lambda model, given: ORPOTrainer.concatenated_forward(trainer, model, given)
    trainer.odds_ratio_loss = lambda *logps: ORPOTrainer.odds_ratio_loss(trainer, *logps)
    plain = lambda ids, attention_mask, **kwargs: model(ids, attention_mask)  # noqa: E731
    expected, metrics = ORPOTrainer.get_batch_loss_metrics(trainer, plain, {"chosen_labels": ids[:7]})
    assert joined.item() == pytest.approx(expected.item(), rel=1e-5)
    figures = joined_figures(objective, values.detach().numpy())
    assert figures.keys() == set(task.metric_names(None))
    assert figures == pytest.approx({name: metrics[name] for name in figures}, rel=1e-4)


def test_the_divergence_of_kto_is_that_of_the_global_batch(tokenizer: Any) -> None:
    """Of all micro-batches and ranks, at least 0; a rank without rows adds nothing."""
    rows, model, base = labelled_rows(8, 7), Scripted(len(tokenizer)), Scripted(len(tokenizer))
    base.table.data.neg_()
    task = PreferenceTask(preference(loss_type="kto", desirable_weight=2.0))
    objective, whole = task.build_objective(), tokens_of(task, rows, tokenizer)
    with torch.no_grad():
        reference = objective.reference(base, whole)
    whole[REFERENCE] = reference.contiguous().view(torch.int32)
    parts = [{name: tensor[part] for name, tensor in whole.items()} for part in (slice(0, 3), slice(3, 8))]
    sums = objective.batch_sums(model, [(parts[0], 3), (parts[1], 5), (parts[0], 0)])
    likelier = score_completions(model, whole, slice(1, 2)) - reference[:, 1:]
    assert sums.tolist() == pytest.approx([likelier.sum().item(), 8])
    values = objective.values(model, model, whole, True)
    divergence = max(likelier.mean().item(), 0)
    ratio = (values[:, 0] - values[:, 1]).detach()
    signs = torch.tensor([1.0 if row["label"] else -1.0 for row in rows])
    weights = torch.tensor([2.0 if row["label"] else 1.0 for row in rows])
    expected = (weights * (1 - torch.sigmoid(0.1 * signs * (ratio - divergence)))).mean()
    assert objective.loss(values, sums).item() == pytest.approx(expected.item(), rel=1e-5)
    figures = joined_figures(objective, values.detach().numpy())
    assert figures["kl"] == pytest.approx(divergence, rel=1e-5) and figures.keys() == set(task.metric_names(None))
    none = objective.figures([0.0, 0.0, 0.0, 2.0, 1.0, 3.0, 0.0])
    assert none == {"rewards/rejected": 0.5, "logps/rejected": 1.5, "kl": 0.0}
    assert next(task.score_rows(values.detach().numpy(), [1] * 8, [], tokenizer))["desirable"]


def test_rewards_of_pairs_with_margins(tokenizer: Any) -> None:
    rows = [{**row, "by": place / 4} for place, row in enumerate(pair_rows(5, 8))]
    config = RewardModeling(type="reward-modeling", margin_column="by", center_rewards_coefficient=0.1)
    task = RewardModelingTask(config)
    assert task.check_row({**rows[0], "by": "much"}) == "field 'by' is 'much', not a number"
    columns = task.encode_rows(rows, tokenizer, Lengths(64)).columns
    context = CollateContext(tokenizer.pad_token_id, 0, "left", ["input_ids", "attention_mask"], [])
    assert task.collate(columns, context, Place(0, 0, np.arange(5)))["labels"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    values = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.25]])
    objective = task.build_objective()
    chosen, rejected, margin = values.unbind(1)
    plain = -torch.nn.functional.logsigmoid(chosen - rejected - margin).mean() + 0.1 * (chosen + rejected).pow(2).mean()
    assert objective.loss(values, None).item() == pytest.approx(plain.item())
    figures = task.build_metrics([], tokenizer)(SimpleNamespace(predictions=values.numpy()))
    expected = {"accuracy": 0.5, "margin": -0.75, "mean_reward": 0.875, "min_reward": 0.0, "max_reward": 2.0}
    assert figures == pytest.approx(expected) and figures.keys() == set(task.metric_names(None))
    assert [row["prediction"] for row in task.score_rows(values.numpy(), None, [], tokenizer)] == ["chosen", "rejected"]


# The reference


def test_the_reference_is_the_model_without_its_adapter(tokenizer: Any) -> None:
    import peft
    import transformers
    from preference_truth import LLAMA

    torch.manual_seed(1)
    model: Any = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**{**LLAMA, "vocab_size": len(tokenizer)})
    )
    inputs = tokens_of(PreferenceTask(preference()), pair_rows(4, 2), tokenizer)
    with torch.no_grad():
        before = score_completions(model.eval(), inputs, slice(0, 2))
    with pytest.raises(ValueError, match="known of the rows of data.train and data.validation only"):
        score_by_reference(model, inputs, slice(0, 2))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted.train()
    found = score_by_reference(adapted, inputs, slice(0, 2))
    assert torch.equal(found, before) and not found.requires_grad and adapted.training
    assert not torch.equal(score_completions(adapted, inputs, slice(0, 2)), before)
    with quiet(adapted):
        assert not adapted.training and not torch.is_grad_enabled()


def test_which_adapters_keep_the_base_model() -> None:
    assert keeps_base({"r": 8}) and keeps_base({"init_lora_weights": "gaussian"})
    assert not keeps_base({"init_lora_weights": "pissa"}) and not keeps_base({"bias": "all"})
    task = PreferenceTask(preference())
    assert task.precomputes_reference(None) and not task.precomputes_reference({"r": 8})
    assert task.precomputes_reference({"init_lora_weights": "olora"})
    assert PreferenceTask(preference(precompute_ref_log_probs=True)).precomputes_reference({"r": 8})
    assert not PreferenceTask(preference(loss_type="orpo")).precomputes_reference(None)


def test_nothing_is_dropped_out() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2), torch.nn.Dropout(0.1))
    disable_dropout(model)
    inputs = torch.ones(3, 2)
    assert torch.equal(model.train()(inputs), model.eval()(inputs))
    assert not PreferenceTask(preference()).drops_out and PreferenceTask(preference(disable_dropout=False)).drops_out


# Jobs


def job(**sections: Any) -> dict[str, Any]:
    found = {"model": {"name_or_path": "gpt2"}, "data": {"train": "a.jsonl"}, "task": {"type": "preference"}}
    return {key: {**found.get(key, {}), **sections.get(key, {})} for key in {**found, **sections}}


@pytest.mark.parametrize(
    ("sections", "where", "what"),
    [
        ({"task": {"label_smoothing": 0.1}}, "task", "label_smoothing: is read with robust and exo_pair alone"),
        ({"task": {"loss_type": "exo_pair"}}, "task", "label_smoothing: exo_pair needs more than 0"),
        ({"task": {"loss_type": "kto", "chosen_column": "a"}}, "task", "chosen_column: is not read with loss_type kto"),
        ({"task": {"desirable_weight": 2}}, "task", "desirable_weight: is not read with loss_type sigmoid"),
        ({"task": {"loss_type": "orpo", "precompute_ref_log_probs": True}}, "task", "orpo has no reference"),
        ({"task": {"precompute_ref_log_probs": False}}, "task.precompute_ref_log_probs", "there is no lora"),
        (
            {"task": {"precompute_ref_log_probs": False}, "lora": {"r": 4, "init_lora_weights": "pissa"}},
            "task.precompute_ref_log_probs",
            "change the base model",
        ),
        ({"data": {"streaming": True}, "training": {"max_steps": 9}}, "data.streaming", "before training"),
        ({"training": {"label_smoothing_factor": 0.1}}, "training.label_smoothing_factor", "which preference has not"),
        ({"trainer": {"compute_loss_func": "a:b"}}, "trainer.compute_loss_func", "the task's own"),
    ],
)
def test_what_contradicts_each_other_is_refused(sections: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(InputError) as error:
        load_job(job(**sections))
    assert any(problem.where == where and what in problem.what for problem in error.value.problems), error.value


def test_what_may_be_combined(tmp_path: Path) -> None:
    load_job(job(task={"loss_type": "orpo"}, data={"streaming": True}, training={"max_steps": 9}))
    load_job(
        job(
            task={"precompute_ref_log_probs": False}, lora={"r": 4}, data={"streaming": True}, training={"max_steps": 9}
        )
    )
    task = build_task(load_job(job(task={"loss_type": "robust", "label_smoothing": 0.2})).task)
    assert isinstance(task, PreferenceTask) and task.input_choice == ("prompt", "chosen")
