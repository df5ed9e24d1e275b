"""The score's extremes and a hand-computed case."""

import numpy as np
import pytest

from diffjax.metrics import inception_score


def test_uniform_probabilities_score_one():
    mean, std = inception_score(np.full((100, 10), 0.1))
    assert mean == pytest.approx(1, abs=1e-12)
    assert std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("splits", [1, 5, 10])
def test_certain_and_balanced_scores_the_number_of_classes(splits):
    probs = np.eye(7)[np.arange(700) % 7]
    mean, std = inception_score(probs, splits=splits)
    assert mean == pytest.approx(7, rel=1e-12)
    assert std == pytest.approx(0, abs=1e-12)


def test_certain_but_always_the_same_class_scores_one():
    assert inception_score(np.eye(7)[np.full(50, 3)])[0] == pytest.approx(1, abs=1e-12)


def test_certain_and_unbalanced_scores_the_exponential_of_the_entropy():
    probs = np.eye(2)[(np.arange(100) % 4 == 0).astype(int)]  # frequencies 3/4 and 1/4
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert inception_score(probs, splits=1)[0] == pytest.approx(np.exp(entropy), rel=1e-12)


def test_splits_are_scored_apart():
    # The first half is one class only (score 1), the second is balanced (score 2).
    probs = np.eye(2)[[0] * 10 + [0, 1] * 5]
    mean, std = inception_score(probs, splits=2)
    assert (mean, std) == (pytest.approx(1.5), pytest.approx(0.5))


def test_soft_probabilities_by_hand():
    p, q = np.array([0.9, 0.1]), np.array([0.3, 0.7])
    m = (p + q) / 2
    kl = ((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2
    assert inception_score([p, q], splits=1)[0] == pytest.approx(np.exp(kl), rel=1e-12)


def test_errors():
    with pytest.raises(ValueError, match="between 1 and the 5 images, got 10"):
        inception_score(np.full((5, 2), 0.5))
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(np.ones((20, 2)))
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(np.full((20, 2), np.nan))
    with pytest.raises(ValueError, match=r"shape \(N, K\), got \(20,\)"):
        inception_score(np.ones(20))
