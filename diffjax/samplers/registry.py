"""Samplers by name, as configs and command lines choose them.

Names are those of the field: ``euler`` is DDIM with eta 0, ``dpmpp_2m`` is DPM-Solver++ of order 2,
``pc`` is the predictor-corrector of score SDEs. Options are the keyword arguments of the entry.
"""

from __future__ import annotations

from collections.abc import Callable

from diffjax.samplers.ancestral import ancestral, ddim, ddim_inverse
from diffjax.samplers.consistency import consistency, lcm, tcd
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
    *, variance: float | str = "fixedlarge", snr: float = 0.16, corrections: int = 1
) -> Sampler:
    """Make the predictor-corrector sampler of Song et al. 2021 (appendix E).

    The forward variance makes the predictor that of reverse diffusion.
    """
    return predictor_corrector(ancestral(variance), snr=snr, corrections=corrections)


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddim": ddim,
    "ddim_inverse": ddim_inverse,
    "ddpm": ancestral,
    "euler": lambda: ddim(0.0),
    "euler_ancestral": lambda: ddim(1.0),
    "heun": heun,
    "flow_heun": flow_heun,
    "dpm2": dpm2,
    "dpm2_ancestral": lambda: dpm2(ancestral=True),
    "lms": lms,
    "plms": plms,
    "ipndm": ipndm,
    "deis": deis,
    "dpm_solver_2m": _dpmpp(2, "dpmsolver"),
    "dpm_solver_3m": _dpmpp(3, "dpmsolver"),
    "dpmpp_2m": _dpmpp(2),
    "dpmpp_3m": _dpmpp(3),
    "dpmpp_2m_sde": _dpmpp(2, "sde-dpmsolver++"),
    "dpmpp_3m_sde": _dpmpp(3, "sde-dpmsolver++"),
    "dpmpp_2s": lambda: dpm_solver_single(order=2),
    "dpmpp_3s": lambda: dpm_solver_single(order=3),
    "unipc": lambda *, lower_order_final=True: unipc(lower_order_final=lower_order_final),
    "unipc_3": lambda *, lower_order_final=True: unipc(
        order=3, lower_order_final=lower_order_final
    ),
    "sa_solver": lambda *, lower_order_final=True: sa_solver(lower_order_final=lower_order_final),
    "consistency": consistency,
    "lcm": lcm,
    "tcd": tcd,
    "langevin": annealed_langevin,
    "pc": _pc,
}


def make(name: str, options: Options | None = None) -> Sampler:
    """Return the named sampler.

    Args:
        name: a key of `SAMPLERS`.
        options: its keyword arguments.

    Raises:
        ValueError: unknown name or option, or a value that the sampler refuses.
    """
    return build("sampler", name, SAMPLERS, options)
