"""What is proven of each task, by which test: the support matrix of the guide, written by `python -m tests.generate`.

A line is added here when a test proves more; `tests/unit/test_generated.py` looks the tests up.
"""

from __future__ import annotations

from raytrain_nlp.config.tasks import TASK_TYPES

FEATURES = ("ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3", "LoRA", "packing", "bf16", "fp16", "killed, resumed", "elastic")
CPU, GPU, STEP, REFUSED = "CPU", "GPU", "step", "refused"
MEANING = {
    CPU: "whole runs of two workers on CPUs, compared with an independent truth",
    GPU: "whole runs on one NVIDIA H200; the test repeats them where there is a GPU",
    STEP: "steps on CPUs only, beside plain `Trainer`; no whole run",
    REFUSED: "refused before anything starts, with what to do",
}
_EQUAL = "tests/integration/test_equality.py::test_first_twenty_losses_and_final_weights"
_READS = "tests/cluster/test_host_reads_of_tasks.py::test_a_step_reads_no_more_than_plain_trainers"
_ON_GPU = "tests/gpu/test_runs.py::test_a_run_ends_with_finite_losses"
_ELASTIC = "tests/cluster/test_elastic.py::test_two_workers_then_one_then_two"
_KILLED = "tests/faults/test_tasks_killed.py::test_killed_run_and_single_worker"
_ALL = "tests/cluster/test_killed_tasks.py::test_killed_run_and_one_and_three_workers"
_TASKS = "tests/integration/test_tasks.py"
_VECTORS = "tests/cluster/test_similarity.py"
_PREFERS = "tests/cluster/test_preference_runs.py"
_SEQ2SEQ = f"{_TASKS}::test_seq2seq"
_NO_FP16 = "tests/unit/test_config.py::test_half_precision_of_a_gpu_is_refused_on_cpu[fp16]"

Proofs = list[tuple[str, str]]
"""Where, and the test that proves it."""
PROVEN: dict[str, dict[str, Proofs]] = {
    "text-classification": {
        "ZeRO 0": [(CPU, _EQUAL), (GPU, f"{_ON_GPU}[zero0]")],
        "ZeRO 1": [(CPU, _EQUAL)],
        "ZeRO 2": [(CPU, _EQUAL), (GPU, f"{_ON_GPU}[zero2]")],
        "ZeRO 3": [(CPU, _EQUAL), (GPU, f"{_ON_GPU}[zero3]")],
        "LoRA": [
            (CPU, "tests/integration/test_lora_precision.py::test_a_classifier_s_adapter_and_head_train_in_bf16"),
            (GPU, f"{_ON_GPU}[lora]"),
        ],
        "bf16": [
            (CPU, "tests/integration/test_equality.py::test_offload_and_gradient_checkpointing_change_no_loss"),
            (GPU, f"{_ON_GPU}[zero3]"),
        ],
        "fp16": [(REFUSED, _NO_FP16), (GPU, f"{_ON_GPU}[fp16]")],
        "killed, resumed": [
            (CPU, "tests/cluster/test_seeded_kills.py::test_thirty_kills"),
            (GPU, "tests/gpu/test_runs.py::test_a_resumed_run_ends_bit_for_bit"),
        ],
        "elastic": [(CPU, _ELASTIC)],
    },
    "token-classification": {
        "ZeRO 0": [(CPU, "tests/cluster/test_tagged_words.py::test_losses_without_zero")],
        "ZeRO 3": [(CPU, f"{_TASKS}::test_token_classification")],
        "fp16": [(REFUSED, _NO_FP16)],
        "killed, resumed": [(CPU, "tests/cluster/test_tagged_words.py::test_killed_run_and_one_and_three_workers")],
    },
    "multiple-choice": {
        **dict.fromkeys(("ZeRO 0", "ZeRO 2"), [(STEP, f"{_READS}[choices]")]),
        "ZeRO 3": [(CPU, "tests/integration/test_tasks.py::test_multiple_choice")],
        "fp16": [(REFUSED, _NO_FP16)],
        "killed, resumed": [(CPU, f"{_ALL}[multiple-choice]")],
    },
    "sentence-similarity": {
        "ZeRO 0": [(CPU, f"{_VECTORS}::test_losses")],
        "ZeRO 3": [(CPU, f"{_TASKS}::test_sentence_similarity")],
        "LoRA": [(CPU, f"{_VECTORS}::test_predictions_are_vectors_of_sentence_transformers")],
        "fp16": [(REFUSED, _NO_FP16)],
        "killed, resumed": [(CPU, f"{_VECTORS}::test_killed_run_ends_bit_for_bit")],
    },
    "question-answering": {
        "ZeRO 0": [(CPU, f"{_TASKS}::test_question_answering[zero0]")],
        "ZeRO 3": [(CPU, f"{_TASKS}::test_question_answering[zero3]")],
        "fp16": [(REFUSED, _NO_FP16)],
        "killed, resumed": [(CPU, f"{_ALL}[question-answering]")],
    },
    "seq2seq-question-answering": {
        "fp16": [(REFUSED, _NO_FP16)],
        "killed, resumed": [(CPU, f"{_ALL}[seq2seq-question-answering]")],
    },
    "causal-lm": {
        **dict.fromkeys(("ZeRO 0", "ZeRO 2"), [(STEP, f"{_READS}[blocks]")]),
        "ZeRO 3": [(CPU, "tests/integration/test_tasks.py::test_causal_lm")],
        "LoRA": [(CPU, "tests/integration/test_techniques.py::test_lora_with_everything_trains_and_resumes")],
        "packing": [
            (CPU, "tests/integration/test_tasks.py::test_packed_documents_are_learned_as_if_alone"),
        ],
        "bf16": [(STEP, f"{_READS}[bf16]")],
        "fp16": [(REFUSED, _NO_FP16)],
        "killed, resumed": [(CPU, f"{_KILLED}[causal-lm]")],
    },
    "masked-lm": {
        **dict.fromkeys(("ZeRO 0", "ZeRO 2"), [(STEP, f"{_READS}[masked rows]")]),
        "ZeRO 3": [(CPU, f"{_TASKS}::test_masked_lm[masked]")],
        "packing": [(STEP, f"{_READS}[masked blocks]")],
        "fp16": [(REFUSED, _NO_FP16)],
        "killed, resumed": [(CPU, f"{_KILLED}[masked-lm]")],
    },
    "permutation-lm": {
        "ZeRO 0": [(CPU, f"{_TASKS}::test_masked_lm[permutation]")],
        "fp16": [(REFUSED, _NO_FP16)],
        "killed, resumed": [(CPU, f"{_ALL}[permutation-lm]")],
    },
    "preference": {
        "ZeRO 0": [(CPU, f"{_PREFERS}::test_losses_without_zero_are_those_of_trl[lora]")],
        "ZeRO 3": [(CPU, f"{_PREFERS}::test_losses_under_zero_3_are_those_of_trl[kto]")],
        "LoRA": [(CPU, f"{_PREFERS}::test_losses_under_zero_3_are_those_of_trl[lora]")],
        "fp16": [(REFUSED, _NO_FP16)],
        "killed, resumed": [(CPU, f"{_PREFERS}::test_killed_run_and_one_and_three_workers[dpo]")],
    },
    "reward-modeling": {
        "ZeRO 0": [(CPU, f"{_PREFERS}::test_losses_without_zero_are_those_of_trl[reward]")],
        "ZeRO 3": [(CPU, f"{_PREFERS}::test_losses_under_zero_3_are_those_of_trl[reward]")],
        "fp16": [(REFUSED, _NO_FP16)],
        "killed, resumed": [(CPU, f"{_PREFERS}::test_killed_run_and_one_and_three_workers[reward]")],
    },
    **{
        task: {
            **dict.fromkeys(("ZeRO 0", "ZeRO 2"), [(STEP, f"{_READS}[{task}]")]),
            "ZeRO 3": [(CPU, f"{_SEQ2SEQ}[{task}]")],
            "fp16": [(REFUSED, _NO_FP16)],
            "killed, resumed": [(CPU, f"{_KILLED}[{task}]")],
        }
        for task in ("summarization", "translation")
    },
}
NO_PACKING = tuple(task for task in TASK_TYPES if task not in ("causal-lm", "masked-lm", "permutation-lm"))
"""Tasks whose rows stay rows: there is no such key."""


def render_matrix() -> str:
    """The page of the guide."""
    lines = [
        "# Support matrix",
        "",
        "[Guides](README.md). What tests prove of each task; `python -m tests.generate` writes this page from",
        "[the list of them](../../tests/support_matrix.py). An empty place is not proven: it may well work.",
        "",
        f"| | {' | '.join(FEATURES)} |",
        f"|---|{'---|' * len(FEATURES)}",
    ]
    for task in TASK_TYPES:
        cells = [_cell(task, feature) for feature in FEATURES]
        lines.append(f"| `{task}` | {' | '.join(cells)} |")
    lines += ["", *(f"- **{word}**: {meaning}." for word, meaning in MEANING.items())]
    lines += [
        "- **n/a**: the task has no such thing.",
        "",
        "fp16 is refused on CPUs, and proven on a GPU where it says so. 31 model families are trained by",
        "`tests/integration/test_families.py`, each with its tasks. Nothing has been run on several GPUs:",
        "see [limits](limits.md).",
        "",
        "## The tests",
        "",
        "| task | what | where | test |",
        "|---|---|---|---|",
    ]
    for task, features in PROVEN.items():
        for feature, proofs in features.items():
            lines += [f"| `{task}` | {feature} | {where} | `{test}` |" for where, test in proofs]
    return "\n".join(lines) + "\n"


def _cell(task: str, feature: str) -> str:
    if feature == "packing" and task in NO_PACKING:
        return "n/a"
    return ", ".join(where for where, _ in PROVEN.get(task, {}).get(feature, ()))
