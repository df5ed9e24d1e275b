"""Samplers by name, as configs and command lines choose them.

Names are those of the field: ``euler`` is DDIM with eta 0, ``dpmpp_2m`` is DPM-Solver++ of order 2,
``pc`` is the predictor-corrector of score SDEs. Options are the keyword arguments of the entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from diffjax.samplers.adaptive import rk45
from diffjax.samplers.ancestral import ancestral, ddim, ddim_inverse
from diffjax.samplers.consistency import consistency, lcm, tcd
from diffjax.samplers.euler_maruyama import euler_maruyama
from diffjax.samplers.exponential import dpm_solver, dpm_solver_single, unipc
from diffjax.samplers.langevin import annealed_langevin, predictor_corrector
from diffjax.samplers.ode import deis, dpm2, flow_heun, heun, ipndm, lms, plms
from diffjax.samplers.stochastic_adams import sa_solver
from diffjax.types import Options, Sampler, build


def _dpmpp(order: int, algorithm: str = "dpmsolver++") -> Callable[..., Sampler]:
    """Make a registry entry for multistep DPM-Solver with its order and algorithm fixed."""

    def make_it(
        *,
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
    ) -> Sampler:
        return dpm_solver(
            order=order,
            algorithm=algorithm,
            solver_type=solver_type,
            lower_order_final=lower_order_final,
            euler_at_final=euler_at_final,
        )

    return make_it


def _pc(
    *,
    variance: float | str = "fixedlarge",
    snr: float = 0.16,
    corrections: int = 1,
    norm: str = "image",
) -> Sampler:
    """Make the predictor-corrector sampler of Song et al. 2021 (appendix E).

    The forward variance makes the predictor that of reverse diffusion.
    """
    return predictor_corrector(ancestral(variance), snr=snr, corrections=corrections, norm=norm)


class SamplerEntry(NamedTuple):
    """What a name of a sampler stands for.

    Attributes:
        make: the constructor of the sampler; its arguments are the options of the name.
        scheduler: the class of diffusers that takes the same steps, without ``Scheduler`` at its
            end; empty if there is none.
        config: what this name sets in the config of that class.
    """

    make: Callable[..., Sampler]
    scheduler: str = ""
    config: Mapping[str, object] = {}


def _make_multistep(order: int, algorithm: str) -> SamplerEntry:
    config = {"algorithm_type": algorithm, "solver_order": order}
    return SamplerEntry(_dpmpp(order, algorithm), "DPMSolverMultistep", config)


_SINGLE = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_PNDM = SamplerEntry(plms, "PNDM", {"skip_prk_steps": True})
# The one list of the names of samplers: those of configs, and of requests to published models.
REGISTRY: Mapping[str, SamplerEntry] = {
    "ddim": SamplerEntry(ddim, "DDIM"),
    "ddim_inverse": SamplerEntry(ddim_inverse),
    "ddpm": SamplerEntry(ancestral, "DDPM"),
    "euler": SamplerEntry(lambda: ddim(0.0), "EulerDiscrete"),
    "euler_ancestral": SamplerEntry(lambda: ddim(1.0), "EulerAncestralDiscrete"),
    "heun": SamplerEntry(heun, "HeunDiscrete"),
    "flow_heun": SamplerEntry(flow_heun),
    "dpm2": SamplerEntry(dpm2, "KDPM2Discrete"),
    "dpm2_ancestral": SamplerEntry(lambda: dpm2(ancestral=True), "KDPM2AncestralDiscrete"),
    "lms": SamplerEntry(lms, "LMSDiscrete"),
    "plms": _PNDM,
    "pndm": _PNDM,  # as diffusers calls it
    "ipndm": SamplerEntry(ipndm),
    "deis": SamplerEntry(deis, "DEISMultistep", {"algorithm_type": "deis"}),
    "dpm_solver_2m": SamplerEntry(_dpmpp(2, "dpmsolver")),
    "dpm_solver_3m": SamplerEntry(_dpmpp(3, "dpmsolver")),
    "dpmpp_2m": _make_multistep(2, "dpmsolver++"),
    "dpmpp_3m": _make_multistep(3, "dpmsolver++"),
    "dpmpp_2m_sde": _make_multistep(2, "sde-dpmsolver++"),
    "dpmpp_3m_sde": SamplerEntry(_dpmpp(3, "sde-dpmsolver++")),
    "dpmpp_2s": SamplerEntry(lambda: dpm_solver_single(order=2), "DPMSolverSinglestep", _SINGLE),
    "dpmpp_3s": SamplerEntry(lambda: dpm_solver_single(order=3)),
    "unipc": SamplerEntry(
        lambda *, lower_order_final=True: unipc(lower_order_final=lower_order_final),
        "UniPCMultistep",
    ),
    "unipc_3": SamplerEntry(
        lambda *, lower_order_final=True: unipc(order=3, lower_order_final=lower_order_final)
    ),
    "sa_solver": SamplerEntry(
        lambda *, lower_order_final=True: sa_solver(lower_order_final=lower_order_final),
        "SASolver",
    ),
    "consistency": SamplerEntry(consistency),
    "lcm": SamplerEntry(lcm, "LCM"),
    "tcd": SamplerEntry(tcd, "TCD"),
    "langevin": SamplerEntry(annealed_langevin),
    "pc": SamplerEntry(_pc),
    "euler_maruyama": SamplerEntry(euler_maruyama),
    "rk45": SamplerEntry(rk45),
}
SAMPLERS: Mapping[str, Callable[..., Sampler]] = {k: entry.make for k, entry in REGISTRY.items()}


def make(name: str, options: Options | None = None) -> Sampler:
    """Return the named sampler.

    Args:
        name: a key of `SAMPLERS`.
        options: its keyword arguments.

    Raises:
        ValueError: unknown name or option, or a value that the sampler refuses.
    """
    return build("sampler", name, SAMPLERS, options)
