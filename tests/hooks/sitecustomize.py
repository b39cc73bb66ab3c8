"""Test hooks in worker processes: loaded by Python at start wherever tests put this folder on PYTHONPATH.

The product has no switches for tests. What a test wants to see or break is written to the JSON file that the
environment variable RAYTRAIN_NLP_TEST_HOOKS names, read anew by each process:

    {"record_rows": FOLDER}                                every micro-batch trained: rank, step, row ids, what stands in each row
    {"kill": {"point": NAME, "rank": R, "step": N, "marker": FILE}}   SIGKILL this process there, once (marker); or a list of such
    {"nan": {"rank": R, "step": N}}                        a loss that is not a number
    {"zero_moment": true}                                  an optimizer state that is loaded with its first moment zeroed
    {"hold": true}                                         a prediction that never comes to its second part
    {"gpus": [{"name": NAME, "memory": BYTES, "bf16": true}]}   GPUs the driver finds; torch finds none
    {"gpu": FILE}                                          torch finds a GPU unless the environment hides it when torch first looks; a line for each look
"""  # noqa: E501

import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import threading
import time
import zlib


def _wanted():
    try:
        with open(os.environ["RAYTRAIN_NLP_TEST_HOOKS"], encoding="utf-8") as file:
            return json.load(file)
    except (KeyError, OSError, ValueError):
        return {}


def _kill(point, step):
    kills = _wanted().get("kill") or []
    here = {"point": point, "rank": int(os.environ.get("RANK", -1)), "step": step}
    wanted = next(
        (kill for kill in (kills if isinstance(kills, list) else [kills]) if here.items() <= kill.items()), None
    )
    if not wanted:
        return
    try:
        os.close(os.open(wanted["marker"], os.O_CREAT | os.O_EXCL))  # once, and visible to the process that restarts
    except FileExistsError:
        return
    if wanted.get("parent"):
        os.kill(wanted["parent"], signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _digests(inputs):
    """A checksum of each row's tokens and labels, without the padding that depends on its neighbours."""
    found = []
    for i, mask in enumerate(inputs.get("attention_mask", inputs["input_ids"] >= 0)):
        names = ("labels", "start_positions", "end_positions")
        labels = [value for name in names if name in inputs for value in inputs[name][i].reshape(-1).tolist()]
        while labels and labels[-1] == -100:
            labels.pop()
        found.append(zlib.crc32(json.dumps([inputs["input_ids"][i][mask != 0].tolist(), labels]).encode()))
    return found


def _patch_trainer(module):
    mixin, agreement = module.StepMixin, module.Agreement
    training_step, begin = mixin.training_step, agreement.begin

    def recorded(self, model, inputs, num_items_in_batch=None):
        batch, wanted = inputs.micro_batch, _wanted()
        if "record_rows" in wanted:
            with open(os.path.join(wanted["record_rows"], f"{os.getpid()}.jsonl"), "a", encoding="utf-8") as file:
                entry = {
                    "rank": int(os.environ["RANK"]),
                    "step": batch.step,
                    "micro": batch.micro,
                    "rows": batch.rows.tolist(),
                    "content": _digests(inputs),
                }
                file.write(json.dumps(entry) + "\n")
        if "gpu" in wanted and "deepspeed" in sys.modules:
            _note({"accelerator": sys.modules["deepspeed"].accelerator.get_accelerator().device_name()})
        loss = training_step(self, model, inputs, num_items_in_batch)
        _kill("mid_step", batch.step + 1)
        return loss

    def poisoned(self, loss, micro_batch):
        nan = _wanted().get("nan")
        if nan and nan["rank"] == int(os.environ["RANK"]) and nan["step"] == micro_batch.step + 1:
            loss = loss * float("nan")
        return begin(self, loss, micro_batch)

    mixin.training_step, agreement.begin = recorded, poisoned


def _patch_store(module):
    describe, commit, retention = module.describe_files, module.commit, module.apply_retention

    def describe_files(folder, paths):
        _kill("after_stage", int(folder.name.split("-")[1]))
        return describe(folder, paths)

    def committed(root, staging, manifest):
        _kill("before_commit", manifest.step)
        rename = type(staging).rename

        def killed_rename(self, target):
            _kill("before_rename", manifest.step)
            return rename(self, target)

        type(staging).rename = killed_rename
        try:
            return commit(root, staging, manifest)
        finally:
            type(staging).rename = rename
            _kill("after_commit", manifest.step)

    module.describe_files, module.commit, module.apply_retention = describe_files, committed, retention


def _patch_state(module):
    load = module.load_state

    def load_state(path):
        state = load(path)
        if _wanted().get("zero_moment"):
            _zero_first(state)
        return state

    module.load_state = load_state


def _zero_first(tree):
    """Zero the first `exp_avg` of a state tree; whether there was one."""
    if isinstance(tree, dict) and hasattr(tree.get("exp_avg"), "zero_"):
        tree["exp_avg"].zero_()
        return True
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return any(_zero_first(part) for part in parts)


def _patch_predictor(module):
    write, turn = module.Predictor._write, threading.Lock()

    def held(self, name, table, found):
        with turn:  # the actor has several threads
            while _wanted().get("hold") and any(other.startswith("part-") for other in os.listdir(self._spec.parts)):
                time.sleep(0.5)
            return write(self, name, table, found)

    module.Predictor._write = held


def _patch_cuda(module):
    if "gpu" not in _wanted():
        return
    answers = []

    def asked(what):
        if not answers:
            answers.append(os.environ.get("CUDA_VISIBLE_DEVICES") != "")
        frame, files = sys._getframe(2), []
        while frame is not None:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back
        torch = os.path.dirname(os.path.dirname(module.__file__)) + os.sep
        by = next((file for file in files if not file.startswith(torch)), "")
        _note({"asked": what, "answer": answers[0], "by": by})
        return answers[0]

    module.is_available = lambda: asked("is_available")
    module.device_count = lambda: int(asked("device_count"))


def _patch_gpus(module):
    if (gpus := _wanted().get("gpus")) is not None:
        module.local_gpus = lambda: [module.Gpu(**gpu) for gpu in gpus]


def _note(entry):
    with open(_wanted()["gpu"], "a", encoding="utf-8") as file:
        file.write(json.dumps({"pid": os.getpid(), **entry}) + "\n")


_PATCHES = {
    "torch.cuda": _patch_cuda,
    "raytrain_nlp.cluster.gpus": _patch_gpus,
    "raytrain_nlp.trainer.trainer": _patch_trainer,
    "raytrain_nlp.checkpoint.state": _patch_state,
    "raytrain_nlp.checkpoint.store": _patch_store,
    "raytrain_nlp.prediction.actor": _patch_predictor,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in _PATCHES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _PATCHES[name](module)

        spec.loader.exec_module = exec_module
        return spec


if "RAYTRAIN_NLP_TEST_HOOKS" in os.environ:
    sys.meta_path.insert(0, _AfterImport())
