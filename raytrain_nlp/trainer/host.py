"""The attributes and methods of `transformers.Trainer` that the mixins of this package use, declared for the type
checker only: it does not read the types of transformers. At run time `TrainerHost` is `object`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain_nlp.trainer.training_step import Feed

    class TrainerHost:
        """Base class of the mixins, as the type checker sees it; objects that transformers owns are `Any`."""

        args: Any
        model: Any
        model_wrapped: Any
        deepspeed: Any
        accelerator: Any
        optimizer: Any
        callback_handler: Any
        state: Any
        control: Any
        label_smoother: Any
        compute_metrics: Any
        compute_loss_func: Any
        preprocess_logits_for_metrics: Any
        current_gradient_accumulation_steps: int
        is_deepspeed_enabled: bool
        _feed: Feed
        """Set by `StepMixin`, the outermost of the classes."""

        @property
        def loss_is_scaled_for_ga(self) -> bool | None: ...
        @loss_is_scaled_for_ga.setter
        def loss_is_scaled_for_ga(self, value: bool | None) -> None: ...
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def is_world_process_zero(self) -> bool: ...
        def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]: ...
        def create_accelerator_and_postprocess(self) -> None: ...
        def compute_loss_context_manager(self) -> Any: ...
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]: ...
        def training_step(self, *args: Any, **kwargs: Any) -> Any: ...
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any: ...
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any: ...
        def log(self, *args: Any, **kwargs: Any) -> None: ...
        def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None: ...
        def _finalize_training(self, *args: Any, **kwargs: Any) -> Any: ...
else:
    TrainerHost = object
