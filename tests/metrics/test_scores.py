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
    mean, std = inception_score(probs, splits=splits, seed=None)
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
    mean, std = inception_score(probs, splits=2, seed=None)
    assert (mean, std) == (pytest.approx(1.5), pytest.approx(0.5))


def test_the_order_of_the_images_does_not_matter_much():
    labels = np.random.default_rng(0).integers(0, 8, 2000)
    found = [inception_score(np.eye(8)[some])[0] for some in (labels, np.sort(labels))]
    assert found == pytest.approx([8, 8], rel=0.03)
    assert inception_score(np.eye(8)[np.sort(labels)], seed=None)[0] < 2.5


def test_splits_are_torch_fidelitys():
    p = np.random.default_rng(0).dirichlet(np.ones(5), 23)
    drawn = p[np.random.RandomState(2020).permutation(23)]
    parts = [drawn[i * 23 // 10 : (i + 1) * 23 // 10] for i in range(10)]
    expected = [inception_score(part, splits=1)[0] for part in parts]
    assert inception_score(p) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-12)
    assert inception_score(p[:4]) == pytest.approx((1, 0))  # one image a part


def test_soft_probabilities_by_hand():
    p, q = np.array([0.9, 0.1]), np.array([0.3, 0.7])
    m = (p + q) / 2
    kl = ((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2
    assert inception_score([p, q], splits=1)[0] == pytest.approx(np.exp(kl), rel=1e-12)


def test_errors():
    with pytest.raises(ValueError, match="at least 1 split and 1 image are needed, got 10 and 0"):
        inception_score(np.full((0, 2), 0.5))
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(np.ones((20, 2)))
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(np.full((20, 2), np.nan))
    with pytest.raises(ValueError, match=r"shape \(N, K\), got \(20,\)"):
        inception_score(np.ones(20))
