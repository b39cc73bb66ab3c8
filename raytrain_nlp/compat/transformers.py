"""transformers: private parts of `Trainer` that its subclasses need, and patches of its attention. The private methods
that the run's trainer overrides are in `trainer/`, and listed in the contract.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock


def signature_columns(trainer: Any) -> list[str]:
    """Columns that the model's forward takes, and the label columns: those that `Trainer` keeps of a dataset. A user's
    class may override the method.
    """
    trainer._set_signature_columns_if_needed()
    return trainer._signature_columns


def evaluation_model(trainer: Any) -> Any:
    """The model as `Trainer.evaluation_loop` wraps it, or as training has wrapped it already. A user's class may
    override the method.
    """
    return trainer._wrap_model(trainer.model, training=False)


def generate_alone(trainer: Any) -> None:
    """Let `Seq2SeqTrainer` generate on this rank without waiting for others. Under ZeRO-3 it sets `synced_gpus` unless
    the keyword arguments of an evaluation do, and these can be given from outside by `evaluate` only.
    """
    trainer._gen_kwargs["synced_gpus"] = False


def shifts_labels(trainer: Any) -> bool:
    """Does the model's loss compare each token with the output for the one before it, so that the first label of a row
    does not count?
    """
    return trainer._loss_shifts_labels


def prepared_inputs(trainer: Any, inputs: Any) -> dict[str, Any]:
    """Inputs as `Trainer.training_step` prepares them, by the user's method where a class overrides it."""
    return trainer._prepare_inputs(inputs)


def unlogged_loss(trainer: Any) -> Any:
    """The sum of losses since the last log: a tensor of shape [] that may be changed in place. `Trainer` itself reads
    it, over all ranks, only when it logs.
    """
    return trainer._tr_loss


def apply_maskless(model: Any) -> bool:
    """May `model` be given a batch without padding without an attention mask? Not where the mask has another use, as in
    the router loss of a mixture of experts.

    Where it may, patch its modules: they do not look for padding in `input_ids`, since on a GPU the host would have to
    wait for the result.
    """
    from transformers import PreTrainedModel

    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not parts or any(getattr(part.config, "output_router_logits", False) for part in parts):
        return False
    for part in parts:
        part.warn_if_padding_and_no_attention_mask = _no_warning
    return True


def _no_warning(input_ids: Any, attention_mask: Any) -> None:
    pass


def takes_lengths(model: Any) -> bool:
    """Does `model` use flash attention, whose kernels take the lengths of documents instead of a mask?"""
    from transformers import PreTrainedModel
    from transformers.utils.generic import is_flash_attention_requested

    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return any(is_flash_attention_requested(config=part.config) for part in parts)


@contextlib.contextmanager
def replaced_flash(attend: Callable[..., Any], attend_documents: Callable[..., Any]) -> Iterator[None]:
    """Patch: while inside, models with any flash attention can be built without its packages and without a GPU, and use
    these two functions as the kernels `flash_attn_func` and `flash_attn_varlen_func`. `ValueError` is still raised for
    models without flash attention, and for features that the functions have no parameter for.
    """
    with contextlib.ExitStack() as stack:
        for patch in _flash_patches(attend, attend_documents):
            stack.enter_context(patch)
        yield


@functools.cache
def apply_flash(attend: Callable[..., Any], attend_documents: Callable[..., Any]) -> None:
    """As `replaced_flash`, for the rest of this process, and for `flash_attention_2` only: other implementations use
    their own kernels.
    """
    for patch in _flash_patches(attend, attend_documents, only="flash_attention_2"):
        patch.start()


def _flash_patches(
    attend: Callable[..., Any], attend_documents: Callable[..., Any], only: str | None = None
) -> list[Any]:
    from transformers import PreTrainedModel, modeling_flash_attention_utils
    from transformers.utils.generic import is_flash_attention_requested

    adjust, kernels = PreTrainedModel._check_and_adjust_attn_implementation, modeling_flash_attention_utils

    def checked(self: Any, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        asked = is_flash_attention_requested(requested_attention_implementation=attn_implementation)
        if not asked or only not in (None, attn_implementation):
            return adjust(self, attn_implementation, *args, **kwargs)
        if not self._supports_flash_attn:
            raise ValueError(f"{type(self).__name__} has no flash attention")
        return "flash_attention_2"

    process = kernels._lazy_define_process_function(attend_documents)
    functions = (attend, attend_documents, None, kernels._pad_input, kernels._unpad_input), (process, dict)
    find = kernels.lazy_import_flash_attention

    def found(implementation: str | None, *args: Any, **kwargs: Any) -> Any:
        return functions if only in (None, implementation) else find(implementation, *args, **kwargs)

    return [
        mock.patch.object(PreTrainedModel, "_check_and_adjust_attn_implementation", checked),
        mock.patch.object(kernels, "lazy_import_flash_attention", found),
    ]


@contextlib.contextmanager
def one_sequence_a_row() -> Iterator[None]:
    """Patch: while inside, attention treats each row of a batch without a mask as one sequence. transformers would read
    from the device whether positions start again within a row: once per forward, with flash attention once per layer.
    """
    from transformers import masking_utils, modeling_flash_attention_utils

    with (
        mock.patch.object(masking_utils, "find_packed_sequence_indices", _none_packed),
        mock.patch.object(modeling_flash_attention_utils, "_is_packed_sequence", _not_packed),
    ):
        yield


@contextlib.contextmanager
def documents_in_rows() -> Iterator[None]:
    """Patch: while inside, attention treats the rows of a batch without a mask as several sequences each, which their
    positions tell apart. transformers would first read from the device whether there are such rows; the mask is the
    same.
    """
    from transformers import masking_utils

    with mock.patch.object(masking_utils, "find_packed_sequence_indices", _sequence_numbers):
        yield


@contextlib.contextmanager
def rows_with_padding() -> Iterator[None]:
    """Patch: while inside, SDPA gets the mask of every batch that has one. transformers would first read from the
    device whether the mask is all ones, and leave it out then.
    """
    from transformers import masking_utils

    functions = ("_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa")
    with contextlib.ExitStack() as patches:
        for name in functions:
            patches.enter_context(mock.patch.object(masking_utils, name, _masked(getattr(masking_utils, name))))
        yield


@functools.cache
def _masked(ignores: Callable[..., bool]) -> Callable[..., bool]:
    """A version of `ignores`, transformers' check whether a mask can be left out, that returns False wherever there is
    a mask.
    """
    return lambda padding_mask, *args, **kwargs: padding_mask is None and ignores(padding_mask, *args, **kwargs)


def _none_packed(position_ids: Any) -> None:
    pass


def _sequence_numbers(position_ids: Any) -> Any:
    """For each token the number of its sequence in its row, from 0: int64 [rows, tokens]."""
    return position_ids.diff(prepend=position_ids[:, :1] - 1).ne(1).cumsum(-1)


def _not_packed(position_ids: Any, batch_size: int) -> bool:
    return False


@contextlib.contextmanager
def replaced_init(replaced: Callable[..., None]) -> Iterator[None]:
    """Patch: while inside, `Trainer.__init__` is replaced, to see which arguments a user's `__init__` passes to it
    without having a model.
    """
    from transformers import Trainer

    with mock.patch.object(Trainer, "__init__", replaced):
        yield
