"""What Ray Data says of its own pipeline is not said to the user of a command, unless asked for."""

import logging
import warnings

import pytest

from raytrain_nlp.launch.parallel_map import data_context


def advise() -> None:
    """As a module of Ray Data warns."""
    warnings.warn_explicit(
        "the operator only received 1 input", UserWarning, "map.py", 1, module="ray.data._internal.x"
    )


def count(said: list[warnings.WarningMessage]) -> int:
    """Of these; importing Ray Data may warn of something else."""
    return sum("only received" in str(one.message) for one in said)


@pytest.mark.parametrize("verbose", [False, True])
def test_advice_is_for_those_who_ask(verbose: bool) -> None:
    with data_context(verbose):  # Ray Data sets its logger up when it is first used
        pass
    level = logging.getLogger("ray.data").level
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with data_context(verbose):
            advise()
            assert logging.getLogger("ray.data").level == (level if verbose else logging.ERROR)
        assert count(said) == verbose
        advise()
        assert count(said) == verbose + 1  # the process's own again
    assert logging.getLogger("ray.data").level == level
