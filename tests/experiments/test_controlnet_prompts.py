"""Claims about ControlNets without a prompt and with a wrong one."""

import json

import pytest

from experiments.reproductions.controlnet_prompts import format_prompts, judge_prompts
from experiments.reproductions.verdicts import CONTRADICTED, HELD


@pytest.fixture
def leave(tmp_path):
    """Leave measures of the ControlNet by prompt, over a base of 0.5 whatever it is told."""

    def write(**measures):
        for hint, key in (("edges", "edge_f1"), ("masks", "mask_iou")):
            rows = [
                {"prompt": prompt, "seed": seed, "scale": scale,
                 key: (value if scale else 0.5) + 0.001 * seed}
                for prompt, value in measures.items() for seed in range(3) for scale in (0.0, 1.0)
            ]  # fmt: skip
            file = tmp_path / f"control-prompts-{hint}.json"
            file.write_text(json.dumps({"settings": rows}))
        return tmp_path

    return write


def test_gains_over_the_base_and_what_a_wrong_prompt_costs(leave):
    data = leave(own=0.9, none=0.9, other=0.87)
    assert [c.verdict for c in judge_prompts(data)] == [HELD] * 6
    assert "| edges, F1 | another image's | 0.501 ± 0.001 | 0.871 ± 0.001 |" in format_prompts(data)
    found = [c.verdict for c in judge_prompts(leave(own=0.9, none=0.55, other=0.8))]
    assert found == [CONTRADICTED, HELD, CONTRADICTED] * 2
