"""The papers whose results are reproduced at the scale of one machine, and how.

A module here is one paper. It has

- ``PIECES``: the commands to run, and the files of theirs that are kept (`pieces.Piece`);
- ``judge_claims(data)``: what the paper says, judged by the files that the pieces left in the
  folder ``data``;
- ``format_page(data)``: tables of the same files, as Markdown, which show the pictures;
- ``draw_plots(data)``: draws those pictures that are made of the files, if there are any;
- ``CONFIG``: the name of the paper's config file, if it is not that of the module in `PAPERS`.

`experiments.reproduce` runs the pieces and writes the pages. A new paper is one module, and one
entry in `PAPERS`. The first line of the module's docstring is the title of the page, and the rest
of it is shown on the overview.
"""

from __future__ import annotations

from types import ModuleType

from experiments.reproductions import (
    ablation,
    all_pipelines,
    cfg,
    controlnet_paper,
    ddim,
    ddpm,
    edm,
    improved_ddpm,
    ldm,
    personal,
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
    "pipelines": all_pipelines,
    "controlnet": controlnet_paper,
    "personal": personal,
    "scaling": scaling,
}
