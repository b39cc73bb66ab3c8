"""What a job leaves to the machine is settled once, by the driver: GPUs or CPUs, how many workers, which precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import support

from raytrain_nlp.cluster import auto, kuberay, targets
from raytrain_nlp.cluster import gpus as of_machine
from raytrain_nlp.cluster.cluster_file import place_of_file
from raytrain_nlp.cluster.session import check_workers
from raytrain_nlp.config import hardware, load_job, public_values
from raytrain_nlp.config.auto import choices_of, without_values
from raytrain_nlp.config.sweep import load_sweep
from raytrain_nlp.errors import InputError
from raytrain_nlp.paths import RunPaths, read_json
from raytrain_nlp.run.record import check_name, open_run
from raytrain_nlp.tuning.sweep_record import settle_sweep

H200, V100 = of_machine.Gpu("NVIDIA H200", 150_000_000_000, True), of_machine.Gpu("Tesla V100", 32_000_000_000, False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with the GPUs and the CPUs this machine has from now on."""

    def have(*gpus: of_machine.Gpu, cpus: int = 16) -> None:
        monkeypatch.setattr(of_machine, "local_gpus", lambda: list(gpus))
        monkeypatch.setattr(of_machine, "torch_without_gpu", lambda: False)
        monkeypatch.setattr("os.cpu_count", lambda: cpus)

    monkeypatch.setattr(targets, "is_local", lambda: True)
    monkeypatch.setattr("raytrain_nlp.cluster.session.is_local", lambda: True)
    return have


def job(*overrides: str, **sections: Any) -> Any:
    values = {
        "task": {"type": "text-classification"},
        "model": {"config": {"model_type": "bert"}, "tokenizer": "train"},
        "data": {"train": "train.jsonl"},
    }
    return load_job({**values, **sections}, overrides)


@pytest.mark.parametrize(
    ("gpus", "cpus", "workers", "found", "line"),
    [
        ([], 16, {}, (2, False), "2 workers on CPUs (this machine has no GPU)"),
        ([], 1, {}, (1, False), "1 worker on CPUs (this machine has no GPU)"),
        ([H200], 16, {}, (1, True), "1 worker on a GPU (NVIDIA H200), bf16 (training.bf16: false for fp32)"),
        ([H200] * 8, 16, {}, (8, True), "8 workers on GPUs (NVIDIA H200), bf16 (training.bf16: false for fp32)"),
        ([H200] * 8, 4, {}, (4, True), "4 workers on GPUs (NVIDIA H200), bf16 (training.bf16: false for fp32)"),
        ([H200] * 8, 64, {"resources_per_worker": {"GPU": 2}}, (4, True), "4 workers on 2 GPUs each (NVIDIA H200), "
                                                                          "bf16 (training.bf16: false for fp32)"),
        ([V100], 16, {}, (1, True), "1 worker on a GPU (Tesla V100), fp32"),
        ([H200, V100], 16, {}, (2, True), "2 workers on GPUs (NVIDIA H200, Tesla V100), fp32"),
        ([H200], 16, {"num_workers": 2}, (2, False), "2 workers on CPUs (this machine has 1 GPU, which is not one for "
                                                     "each)"),
        ([H200], 16, {"num_workers": [1, 4]}, (4, True), "1 to 4 workers on GPUs (NVIDIA H200), bf16 (training.bf16: "
                                                         "false for fp32)"),
        ([H200], 16, {"use_gpu": False}, (2, False), "2 workers on CPUs"),
        ([H200], 16, {"use_gpu": False, "num_workers": 3}, (3, False), "3 workers on CPUs"),
        ([H200], 16, {"use_gpu": "auto", "num_workers": "auto"}, (1, True), "1 worker on a GPU (NVIDIA H200), bf16 "
                                                                            "(training.bf16: false for fp32)"),
        ([], 16, {"use_gpu": True}, (1, True), "1 worker on a GPU, fp32"),  # and `check_workers` refuses it
    ],
)  # fmt: skip
def test_what_the_machine_decides(gpus: list, cpus: int, workers: dict, found: tuple, line: str, machine: Any) -> None:
    machine(*gpus, cpus=cpus)
    settled = auto.settled(job(workers=workers))
    assert (settled.job.workers.num_workers, settled.job.workers.use_gpu) == found and settled.line == line
    assert not settled.job.workers.auto
    again = load_job(public_values(settled.job))  # what workers and the record get
    assert (again.workers.num_workers, again.workers.use_gpu, again.workers.auto) == (*found, set())
    assert again.arguments() == settled.job.arguments()


def test_a_gpu_trains_in_bf16_unless_the_job_says_how(machine: Any) -> None:
    machine(H200)
    assert auto.settled(job("workers.use_gpu=true", "workers.num_workers=1")).job.arguments()["bf16"]
    for override in (
        "training.bf16=false",
        "training.fp16=true",
        "model.dtype=bfloat16",
        "deepspeed.config={zero_optimization: {stage: 2}}",
    ):
        assert not auto.settled(job(override)).job.arguments().get("bf16"), override
    assert auto.settled(job("deepspeed.config={zero_optimization: {stage: 2}, bf16: {enabled: auto}}")).job.arguments()[
        "bf16"
    ]
    assert not auto.settled(job("workers.use_gpu=false")).job.arguments().get("bf16")


def test_what_depends_on_the_workers_is_checked_when_they_are_known(machine: Any) -> None:
    """Neither refused by a guess, nor forgotten."""
    machine(H200)
    written = job(
        "data.global_batch_size=8", "training.per_device_train_batch_size=8"
    )  # right for one worker, wrong for two
    assert auto.settled(written).job.global_batch_size == 8
    machine()
    with pytest.raises(InputError, match="data.global_batch_size: contradicts"):
        auto.settled(written)
    with pytest.raises(InputError, match=r"training.fp16: needs a GPU \(this machine has no GPU\)"):
        auto.settled(job("training.fp16=true"))
    assert auto.settled(job("data.global_batch_size=8")).job.arguments()["per_device_train_batch_size"] == 4


def test_a_resumed_run_keeps_what_was_chosen(tmp_path: Path, machine: Any) -> None:
    """Also on a machine that would choose otherwise; also of a run whose record is of the time before."""
    paths = RunPaths(tmp_path, "run")
    written = job(f"storage_path={tmp_path}")
    machine(H200)
    settled = auto.settled(written)
    with open_run(paths, False) as record:
        record.update(status="killed", job=public_values(settled.job), chosen=settled.chosen)
    machine(H200, H200, V100)
    resumed = auto.settled(written, read_json(paths.record))
    # before the memory planner chose it, ZeRO's stage was 0 unless the job said otherwise
    assert resumed.chosen == {**settled.chosen, "deepspeed.zero_stage": 0}
    assert resumed.job == load_job(settled.job, ["deepspeed.zero_stage=0"])
    assert check_name(resumed.job, paths, True, False) == []
    other = auto.settled(load_job(written, ["workers.num_workers=2"]), read_json(paths.record))
    assert [str(problem).split(" (")[0] for problem in check_name(other.job, paths, True, False)] == [
        "workers.num_workers: differs from the run's own value"
    ]
    old = {"status": "killed", "job": public_values(written)}
    with open_run(paths, True) as record:
        record.update(**old)
    resumed = auto.settled(written, old)
    assert (resumed.job.workers.num_workers, resumed.job.workers.use_gpu) == (1, False) and check_name(
        resumed.job, paths, True, False
    ) == []


def test_a_finished_run_is_used_where_another_machine_has_no_gpu(machine: Any) -> None:
    """evaluate and predict choose anew what was chosen, and nothing else."""
    machine(H200)
    settled = auto.settled(job())
    machine()
    again = auto.settled(
        load_job(without_values(public_values(settled.job), choices_of({"job": public_values(settled.job)})))
    )
    assert (again.job.workers.num_workers, again.job.workers.use_gpu, again.job.arguments()["bf16"]) == (2, False, True)


def test_trials_are_settled_alike(tmp_path: Path, machine: Any) -> None:
    values = {
        "kind": "sweep",
        "name": "sweep",
        "storage_path": str(tmp_path),
        "metric": "eval_loss",
        "mode": "min",
        "num_samples": 2,
        "search_space": {"training.learning_rate": {"loguniform": [1e-4, 1e-2]}},
        "job": support.plain_job(tmp_path, "x", data={"validation": "v.jsonl"}),
    }
    del values["job"]["workers"]
    machine(H200, H200)
    plan, found = settle_sweep(load_sweep(values), None)
    trials = [load_job(plan.trial_values({"training.learning_rate": 1e-3})), *plan.jobs]
    assert {
        (one.workers.num_workers, one.workers.use_gpu, one.arguments()["bf16"], len(one.workers.auto)) for one in trials
    } == {(2, True, True, 0)}
    machine()
    resumed, _ = settle_sweep(load_sweep(values), {"sweep": {"job": public_values(plan.job)}, "chosen": found.chosen})
    assert resumed.job == plan.job
    searched = {**values, "search_space": {"training.bf16": {"choice": [True, False]}}}
    machine(H200)
    assert "bf16" not in settle_sweep(load_sweep(searched), None)[0].job.arguments()


NODES = [
    {"CPU": 8.0},
    {"CPU": 48.0, "GPU": 4.0, "accelerator_type:A100": 1.0},
    {"CPU": 8.0, "GPU": 1.0, "accelerator_type:A100": 1.0},
]


@pytest.mark.parametrize(
    ("nodes", "workers", "found"),
    [
        (NODES, {}, (4, True, True)),  # all of one machine
        (NODES, {"num_workers": 5}, (5, True, True)),
        (NODES, {"num_workers": 6}, (6, False, False)),
        (NODES[:1], {}, (2, False, False)),
        ([{"GPU": 2.0, "accelerator_type:V100": 1.0}], {}, (2, True, False)),
        ([{"GPU": 2.0}], {}, (2, True, False)),  # whether these have bf16, nobody says
    ],
)
def test_what_a_cluster_decides(nodes: list, workers: dict, found: tuple) -> None:
    settled = auto.settled(job(workers=workers), find=lambda: targets.place_of("the cluster", nodes))
    assert (
        settled.job.workers.num_workers,
        settled.job.workers.use_gpu,
        bool(settled.job.arguments().get("bf16")),
    ) == found


def test_a_cluster_that_is_a_file_decides_too() -> None:
    found = place_of_file(str(Path(__file__).parents[2] / "cluster.yaml"))
    assert found.gpus and auto.settled(job(), find=lambda: found).job.workers.use_gpu


def test_a_manifest_asks_for_gpus_where_the_job_does(tmp_path: Path) -> None:
    """The cluster it makes has what it asks for, so nothing can be found there."""
    values = public_values(job("storage_path=s3://bucket/runs", "data.train=builtin:docstrings"))
    text = kuberay.manifest(support.write_job(values, tmp_path / "job.json"), image="image")
    assert "2 workers on CPUs" in text and "use_gpu: false" in text and "nvidia.com/gpu" not in text


@pytest.mark.parametrize(
    ("gpus", "overrides", "line"),
    [
        (
            [],
            ["workers.use_gpu=true"],
            "workers.use_gpu: 1 worker needs 1 GPU, this machine has none. Remove use_gpu, and they run on CPUs",
        ),
        (
            [H200],
            ["workers={use_gpu: true, num_workers: 2}"],
            "workers.num_workers: 2 workers need 2 GPUs, this machine has 1. Lower num_workers",
        ),
        (
            [V100],
            ["workers.use_gpu=true", "training.bf16=true"],
            "training.bf16: is not for this machine's GPU (Tesla V100); it came with the Ampere",
        ),
        (
            [V100],
            ["workers.use_gpu=true", "training.tf32=true"],
            "training.tf32: is not for this machine's GPU (Tesla V100)",
        ),
    ],
)
def test_what_the_gpus_of_this_machine_lack(gpus: list, overrides: list[str], line: str, machine: Any) -> None:
    machine(*gpus)
    told = [str(problem) for problem in check_workers(auto.settled(job(*overrides)).job)]
    assert len(told) == 1 and told[0].startswith(line)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["workers={use_gpu: true, num_workers: 2, resources_per_worker: {GPU: 0.5}}"],
            "workers.resources_per_worker: gives 2 workers parts of a GPU (GPU: 0.5)",
        ),
        (
            ["workers={use_gpu: true, num_workers: 1, resources_per_worker: {GPU: 1.5}}"],
            "workers.resources_per_worker: gives 1 workers parts of a GPU",
        ),
        (
            ["workers={use_gpu: true, num_workers: 1, resources_per_worker: {GPU: 0}}"],
            "workers.resources_per_worker: asks for no GPU while",
        ),
        (["model.attn_implementation=flash_attention_3"], "model.attn_implementation: needs the package flash-attn-3"),
        (
            ["model.attn_implementation=kernels-community/flash-attn2"],
            "model.attn_implementation: needs the package kernels",
        ),
        (
            ["model.attn_implementation=flash_atention_2"],
            "model.attn_implementation: unknown attention ('flash_atention_2'). Did you mean 'flash_attention_2'?",
        ),
        (
            ["model.config={model_type: bert, attn_implementation: flash_attention_3}", "model.name_or_path=null"],
            "model.config.attn_implementation: needs the package flash-attn-3, which is not installed",
        ),
        (
            ["model.attn_implementation=flex_attention", "workers.use_gpu=false"],
            "model.attn_implementation: needs a GPU (workers.use_gpu is false) (flex_attention)",
        ),
        (["training.tf32=true", "workers.use_gpu=false"], "training.tf32: needs a GPU (workers.use_gpu is false)"),
    ],
)
def test_what_the_job_alone_tells_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(InputError) as caught:
        job(*overrides)
    assert str(caught.value.problems[0]).startswith(line) and len(caught.value.problems) == 1


def test_a_lone_worker_may_share_its_gpu_and_attention_that_is_there_is_taken() -> None:
    assert job("workers={use_gpu: true, num_workers: 1, resources_per_worker: {GPU: 0.5}}")
    for name in ("eager", "sdpa", "flex_attention", "flash_attention_2"):  # torch has kernels of the last
        assert job(f"model.attn_implementation={name}")


@pytest.mark.parametrize(("torch", "line"), [("2.10.1", "needs the package flash-attn, which"), ("2.11.0+cu130", None)])
def test_older_versions_of_torch_have_no_flash_attention_for_several_documents(
    torch: str, line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware.importlib.metadata, "version", lambda package: torch)
    if line is None:
        assert job("model.attn_implementation=flash_attention_2")
        return
    with pytest.raises(InputError, match=line):
        job("model.attn_implementation=flash_attention_2")


@pytest.mark.parametrize(
    ("flags", "bf16"), [("", False), ("--bf16", True), ("--fp16", None), ("--deepspeed ds.json", None)],
)  # fmt: skip
def test_a_translated_command_trains_in_its_own_precision(
    flags: str, bf16: bool | None, tmp_path: Path, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script trains in fp32 unless it is told otherwise; so does its job, on a GPU that has bf16."""
    from raytrain_nlp.cli.from_hf.convert import from_hf

    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}, "fp16": {"enabled": true}}')
    command = (
        "deepspeed --num_gpus=1 run_glue.py --task_name mrpc --model_name_or_path bert-base-cased --do_train "
        "--output_dir out"
    )
    written, _ = from_hf([*command.split(), *flags.split()])
    assert written.get("training", {}).get("bf16") is bf16
    machine(H200)
    assert bool(auto.settled(load_job(written)).job.arguments().get("bf16")) is bool(bf16)
