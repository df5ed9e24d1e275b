"""The papers whose results are reproduced at the scale of one machine, and how.

A module here has ``PIECES`` (what to run), ``claims(data)`` (what the paper says, judged on the
files that the pieces left) and ``page(data)`` (tables and plots in Markdown).
"""

from __future__ import annotations

from types import ModuleType

from experiments.reproductions import cfg, ddim, ddpm, edm

PAPERS: dict[str, ModuleType] = {"ddpm": ddpm, "ddim": ddim, "cfg": cfg, "edm": edm}
