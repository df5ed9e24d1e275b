"""ControlNets that read several kinds of hints: what a request may say, and what it does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import generate
from diffjax.generate import RequestError, stages
from diffjax.nets.union_controlnet import UnionControlNet
from diffjax.pretrained import configs
from tests.parity import generate_cases as g

SIZE = g.SIZE


@pytest.fixture(scope="module")
def pipe():
    return g.pipeline("xl")


@pytest.fixture(scope="module")
def net():
    return g.controls("xl-union")[0]


def make(pipe, control, prompt="cat"):
    return pipe(prompt, key=1, sampler=2, control=control, size=SIZE, output="np")


def test_the_kind_and_the_number_of_hints_matter(pipe, net):
    assert isinstance(net.net, UnionControlNet)
    first, second = g.hints()
    one = make(pipe, generate.Control(net, first, kind=3))
    other = make(pipe, generate.Control(net, first, kind=1))
    both = make(pipe, generate.Control(net, [first, second], kind=[3, 1]))
    swapped = make(pipe, generate.Control(net, [second, first], kind=[1, 3]))
    assert np.abs(one - other).max() > 1e-4
    assert np.abs(one - both).max() > 1e-4
    np.testing.assert_allclose(both, swapped, atol=1e-5)  # the order is of no use
    np.testing.assert_array_equal(make(pipe, generate.Control(net, [first], kind=[3])), one)


def test_an_image_does_not_depend_on_the_hints_of_others(pipe, net):
    first, second = g.hints()
    single = generate.Control(net, first, kind=3)
    both = generate.Control(net, np.stack([first, second]), kind=3)
    options = dict(sampler=2, size=SIZE, output="np")
    alone = pipe("cat", key=[1], control=single, **options)
    together = pipe(["cat", "cat"], key=[1, 2], control=both, **options)
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5)


def test_another_kind_or_scale_compiles_nothing(pipe, net):
    given = [
        generate.Control(net, g.hints(), scale, kind=kinds)
        for scale, kinds in ((1.0, (3, 1)), (0.5, (0, 2)))
    ]
    built = [
        stages.make_stages(pipe, generate.Request("cat", control=one, size=SIZE))[0][1]
        for one in given
    ]
    assert built[0].program == built[1].program
    scales = [one.inputs["controls"][0]["hint"]["scales"] for one in built]
    np.testing.assert_array_equal(scales, [[[1, 1]], [[0.5, 0.5]]])
    strengths = [one.inputs["controls"][0]["strength"] for one in built]
    np.testing.assert_array_equal(*strengths)  # several hints are scaled themselves


@pytest.mark.parametrize(
    ("given", "argument", "message"),
    [
        ({}, "control[0].kind", "must be one of 0 .. 4, the kinds of"),
        ({"kind": 5}, "control[0].kind", r"must lie in \[0, 4\], got 5"),
        ({"kind": 1.0}, "control[0].kind", "must be a whole number"),
        ({"kind": [3, 1]}, "control[0].image", "must be a list of 2, one for each kind"),
        ({"kind": []}, "control[0].image", "must be a list of 0"),
    ],
)
def test_what_is_wrong_is_named(pipe, net, given, argument, message):
    with pytest.raises(RequestError, match=message) as found:
        generate.Request("cat", control=generate.Control(net, g.picture(), **given)).read()
    assert found.value.argument == argument


def test_other_networks_have_no_kinds(pipe):
    control = generate.Control(g.controls("xl")[0], g.picture(), kind=1)
    with pytest.raises(RequestError, match=r"control\[0\].kind is of no use"):
        generate.Request("cat", control=control).read()


def test_half_precision(net):
    """Residuals are of the type of the computation, and close to those of single precision."""
    half = net.net.clone(base=net.net.base.clone(dtype=jnp.bfloat16))
    images = np.stack(g.hints())[None] / np.float32(255)
    hint = {"images": images, "kinds": np.array([[3, 1]]), "scales": np.ones((1, 2), "f4")}
    z, t, cond = configs.KINDS["ControlNetUnionModel"].inputs(net.net, net.config)
    z = np.random.default_rng(0).normal(size=(1, SIZE // 2, SIZE // 2, z.shape[-1])).astype("f4")
    cond = {**cond, "hint": hint}
    (_, exact), (_, found) = (
        jax.jit(one.apply)({"params": net.params}, z, t, cond) for one in (net.net, half)
    )
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype("f4"), exact, atol=0.05 * np.abs(exact).max())
