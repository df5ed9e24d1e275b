"""The papers whose results are reproduced at the scale of one machine, and how.

A module here has ``PIECES`` (what to run), ``claims(data)`` (what the paper says, judged on the
files that the pieces left) and ``page(data)`` (tables and plots in Markdown); ``CONFIG`` if its
config file has another name.
"""

from __future__ import annotations

from types import ModuleType

from experiments.reproductions import (
    ablation,
    cfg,
    controlnet,
    ddim,
    ddpm,
    edm,
    improved_ddpm,
    ldm,
    pipelines,
    scaling,
)

PAPERS: dict[str, ModuleType] = {
    "ddpm": ddpm,
    "ablation": ablation,
    "ddim": ddim,
    "improved_ddpm": improved_ddpm,
    "cfg": cfg,
    "edm": edm,
    "ldm": ldm,
    "pipelines": pipelines,
    "controlnet": controlnet,
    "scaling": scaling,
}
