"""Our metrics beside pytorch-fid's and torch-fidelity's, on the same weights and images."""

from importlib.util import find_spec

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
for name in ("torchvision", "torch_fidelity", "pytorch_fid"):
    if not find_spec(name):
        pytest.skip(f"{name} is not installed", allow_module_level=True)

from diffjax import metrics  # noqa: E402
from diffjax.pretrained import from_state_dict  # noqa: E402
from tests.parity import cases, fidelity, inception_cases  # noqa: E402

NUM = 8


@pytest.fixture(scope="module")
def params():
    return from_state_dict(inception_cases.state(), inception_cases.like())


@pytest.fixture(scope="module")
def theirs():
    sets = [inception_cases.images(NUM), inception_cases.images(NUM, seed=1)]
    return [fidelity.features(images) for images in sets]


@pytest.fixture(scope="module")
def ours(params):
    network = metrics.inception_network(params, batch_size=8)
    sets = [inception_cases.images(NUM), inception_cases.images(NUM, seed=1)]
    return [metrics.extract(network, images) for images in sets]


def test_features_are_torch_fidelity_s(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert cases.relative_error(mine.features, other["pool"]) < 1e-5
        assert cases.relative_error(mine.spatial, other["spatial"]) < 1e-5
        expected = torch.from_numpy(other["logits"]).double().softmax(1).numpy()
        np.testing.assert_allclose(mine.probs, expected, rtol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (400, 350)])
def test_features_are_those_of_both_at_any_size(params, size):
    images = inception_cases.images(1, height=size[0], width=size[1])
    others = {
        "tensorflow": fidelity.features(images)["pool"],
        "pytorch_fid": fidelity.pytorch_fid_features(images),
    }
    for resize, other in others.items():
        network = metrics.inception_network(params, resize=resize, batch_size=1)
        mine = metrics.extract(network, images).features
        assert cases.relative_error(mine, other) < 1e-5, resize


def test_fid_is_torch_fidelity_s(ours, theirs):
    from torch_fidelity import metric_fid

    some = np.s_[:, ::16]  # their eigenvalues of all 2048 features take minutes
    mine = metrics.frechet_distance(*(metrics.moments(found.features[some]) for found in ours))
    stats = [
        metric_fid.fid_features_to_statistics(torch.from_numpy(found["pool"][some]).double())
        for found in theirs
    ]
    expected = metric_fid.fid_statistics_to_metric(*stats, verbose=False)
    assert mine == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)


def test_frechet_distance_is_pytorch_fid_s():
    # Full rank: theirs takes the root of a product, which loses digits where ours does not.
    from pytorch_fid.fid_score import calculate_frechet_distance
    from scipy import linalg

    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(400, 32)) @ rng.normal(size=(32, 32)) + shift for shift in (0, 0.3)]
    a, b = map(metrics.moments, sets)
    root, sqrtm = linalg.sqrtm, lambda value, disp=True: (root(value), 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linalg, "sqrtm", sqrtm)  # recent SciPy has no `disp`
        expected = calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_kid_is_torch_fidelity_s(ours, theirs):
    from torch_fidelity.metric_kid import kid_features_to_metric

    found = kid_features_to_metric(
        *(torch.from_numpy(found["pool"]).double() for found in theirs),
        kid_subsets=2,
        kid_subset_size=NUM,
        verbose=False,
    )
    mine, spread = metrics.kernel_distance(ours[0].features, ours[1].features, subsets=2, size=NUM)
    assert mine == pytest.approx(found["kernel_inception_distance_mean"], rel=1e-3)
    assert spread < 1e-12 < abs(mine)


def test_inception_score_is_torch_fidelity_s(ours, theirs):
    from torch_fidelity.metric_isc import isc_features_to_metric

    expected = isc_features_to_metric(torch.from_numpy(theirs[0]["logits"]), 3)  # 2, 3, 3 images
    found = metrics.inception_score(ours[0].probs, splits=3)
    assert found[0] == pytest.approx(expected["inception_score_mean"], rel=1e-4)
    assert found[1] == pytest.approx(expected["inception_score_std"], rel=1e-2)


def test_precision_and_recall_are_torch_fidelity_s():
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(200, 16)), rng.normal(size=(150, 16)) * 0.9 + 0.2
    expected = calculate_precision_recall_full(*map(torch.from_numpy, (fake, real)), 3)
    found = metrics.precision_recall(real, fake, k=3)
    assert 0.2 < found.precision < 0.9
    assert found[:2] == pytest.approx(expected, rel=1e-6)


def test_clip_embeddings_are_those_of_transformers():
    expected = fidelity.clip_vision(inception_cases.clip_images())
    assert cases.relative_error(inception_cases.our_clip_vision(), expected) < 1e-5
