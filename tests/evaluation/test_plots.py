"""Places of labels at the ends of curves."""

from diffjax.evaluation import plots


def test_labels_that_are_too_close_are_moved_apart_around_their_mean():
    move = plots._move_apart
    assert move([0, 10, 30], 5) == [0, 10, 30]
    assert move([10, 11], 5) == [8, 13]
    # A group that grows into its neighbour takes it in.
    assert move([0, 7, 8, 9], 5) == [-1.5, 3.5, 8.5, 13.5]
