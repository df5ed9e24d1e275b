"""What the papers and their released code decided, by variant; see `configs.published.table`."""

from collections.abc import Mapping

from configs.published.adm import ADM
from configs.published.control import CONTROL
from configs.published.ddpm import DDPM
from configs.published.edm2 import EDM2
from configs.published.few_steps import FEW_STEPS
from configs.published.latents import LATENT
from configs.published.scores import SCORES
from configs.published.table import DECIDED, RELEASES, Published
from configs.published.transformers import TRANSFORMERS

__all__ = ["DECIDED", "RELEASES", "TABLE", "Published"]

TABLE: Mapping[str, Published] = {
    **DDPM, **ADM, **SCORES, **EDM2, **LATENT, **TRANSFORMERS, **CONTROL, **FEW_STEPS,
}  # fmt: skip
