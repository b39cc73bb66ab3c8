"""Outputs of evaluation batches joined into arrays of all rows."""

import numpy as np

from raytrain_nlp.trainer.eval_outputs import IGNORED, Joined, Part, batch_prediction, join


def test_batches_of_any_shape_are_padded_to_the_widest_in_each_dimension():
    narrow, wide = np.arange(6).reshape(1, 2, 3), np.arange(8).reshape(1, 2, 4)
    joined = join([wide, narrow], np.array([1, 0]))
    assert joined.shape == (2, 2, 4)
    assert (joined[0, :, :3] == narrow[0]).all() and (joined[0, :, 3] == IGNORED).all()
    assert (joined[1] == wide[0]).all()
    grown = join([np.zeros((2, 1, 2)), np.ones((1, 3, 1))], np.array([0, 1, 2]))
    assert grown.shape == (3, 3, 2) and (grown[2, :, 1] == IGNORED).all() and (grown[0, 1:] == IGNORED).all()


def test_a_batch_of_its_own_is_as_wide_as_if_it_had_been_padded_alone():
    """With `eval_do_concat_batches: false`, in each dimension."""
    from raytrain_nlp.trainer.eval_outputs import Joined

    narrow, wide = np.ones((2, 2, 3), dtype=np.int64), np.ones((1, 2, 5), dtype=np.int64)
    parts = [
        Part(np.array([0, 1]), 2, 0.5, narrow, np.zeros(2)),
        Part(np.array([2]), 1, 0.5, wide, np.zeros(1)),
    ]
    found = Joined(parts).prediction([], 2).predictions
    assert [batch.shape for batch in found] == [(2, 2, 3), (1, 2, 5)]
    assert batch_prediction(parts, []).predictions.shape == (3, 2, 5)


def test_rows_are_in_the_order_of_what_was_kept_of_them() -> None:
    """Whoever looks up what else is known of the rows finds it beside their predictions."""
    parts = [Part(np.array(rows), 2, None, np.array(rows) * 10, None) for rows in ([3, 0], [2, 1])]
    joined = Joined(parts)
    assert joined.rows.tolist() == [0, 1, 2, 3] and joined.of("own").tolist() == [0, 10, 20, 30]
