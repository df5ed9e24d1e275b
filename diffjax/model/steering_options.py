"""How sampling is steered besides the guidance scale, by choices fixed when it compiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from diffjax.types import Array, ArrayLike, Cond, Denoiser, Level, Params

# (parameters, z, level, label (B,)) -> log p(label | z) (B,)
LogProb = Callable[[Params, Array, Level, Array], Array]
# (frozen parameters of the model, raw condition, times of the steps (rows,)) -> the denoiser of the
# guiding model
WeakModel = Callable[[Mapping[str, Params], Cond, ArrayLike], Denoiser]


class Steering(NamedTuple):
    """How sampling is steered besides the guidance scale. It is fixed when the loop is compiled.

    Attributes:
        rescale: share of guidance rescale (Lin et al. 2023, section 3.4), in [0, 1].
        sequential: whether to run both halves of guidance in turn, which halves the memory.
        clip: whether to bound the predicted x to [-1, 1].
        balance: of control against guidance, a name in `diffjax.control.BALANCES`.
        classifier: log-likelihood that guides in place of the null condition, towards
            ``cond["label"]`` (Dhariwal & Nichol 2021); its parameters are ``frozen["classifier"]``.
        rule: by which both halves are combined, a name in `guidance.RULES`.
        rule_options: of the rule, pairs of names and values.
        zero_steps: first evaluations without a movement, see `guidance.zero_first`.
        guide: a worse version of the model, away from which that is guided in place of the null
            condition (Karras et al. 2024); its parameters are ``frozen["guide"]``.
        skip: blocks of a transformer that the weak half of skip-layer guidance lacks.
        skip_scale: k of ``k (c - w)``, which that adds.
        skip_range: smallest and largest sigma / alpha where it does.
    """

    rescale: float = 0.0
    sequential: bool = False
    clip: bool = False
    balance: str = "balanced"
    classifier: LogProb | None = None
    rule: str = "cfg"
    rule_options: tuple[tuple[str, float], ...] = ()
    zero_steps: int = 0
    guide: WeakModel | None = None
    skip: tuple[int, ...] = ()
    skip_scale: float = 0.0
    skip_range: tuple[float, float] = (0.0, float("inf"))


PLAIN = Steering()
