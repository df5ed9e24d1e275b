"""Settings of the loss are read by the objective that a config chooses, or refused."""

import pytest

from configs import consistency, ddpm, flow, improved_ddpm, mean_flow, progressive
from diffjax.config import complete
from diffjax.config.defaults import DEFAULTS
from diffjax.model import make_model
from diffjax.tasks.objective_table import (
    OBJECTIVES,
    OF_MEASURE,
    OF_SOME,
    list_read,
    make_objective,
)

SHAPE = (8, 8, 1)
# A config of every objective.
CONFIGS = {
    "simple": ddpm.digits,
    "vlb": improved_ddpm.VARIANTS["fashion_mnist14_vlb"],
    "hybrid": improved_ddpm.digits,
    "consistency": consistency.digits,
    "mean_flow": mean_flow.digits,
    "shortcut": mean_flow.digits_shortcut,
    "progressive": progressive.VARIANTS["digits_8"],
    "reflow": flow.digits_reflow,
}
OTHERS = {
    "weight": "snr", "distance": "l1", "reduction": "sum", "variance": "fixedlarge",
    "vlb_weight": 0.5, "pairing": "optimal",
}  # fmt: skip


def make(config):
    return make_objective(config, make_model(complete(config), SHAPE))


def test_every_objective_is_tested_and_every_setting_has_its_default():
    assert set(CONFIGS) == set(OBJECTIVES)
    assert {name: CONFIGS[name]().loss.name for name in CONFIGS} == {n: n for n in CONFIGS}
    usual = {**OF_MEASURE, **OF_SOME, "pairing": "independent"}
    assert set(usual) == set(OTHERS)
    assert {key: DEFAULTS["loss"][key] for key in usual} == usual
    # Each is read by some objective.
    assert set().union(*map(list_read, OBJECTIVES)) == set(usual)


@pytest.mark.parametrize("key", OTHERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_setting_that_an_objective_does_not_read_is_refused(name, key):
    config = CONFIGS[name]()
    make(config)
    config.loss[key] = OTHERS[key]
    if key in list_read(name):
        make(config)
        return
    with pytest.raises(ValueError, match=rf"'{name}' does not read loss\.{key}, .*set loss\.{key}"):
        make(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_simple_loss_is_read_by_what_is_made_of_it(name):
    reads = {"simple", "hybrid", "progressive", "reflow"}
    assert (set(OF_MEASURE) <= list_read(name)) == (name in reads)
    assert ("vlb_weight" in list_read(name)) == (name == "hybrid")
