"""What is compared with diffusers: networks with random weights, and samplers with a given noise.

Nothing here needs torch; record.py has the other side of every case. Random numbers come from
`numpy.random.RandomState`, whose streams never change.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import grids, parameterization, samplers, schedules
from diffjax.nets.unet import UNet
from diffjax.pretrained import from_state_dict, to_state_dict
from diffjax.types import Grid, Level, Prediction, Rows, Sampler, Schedule

# ---- networks -------------------------------------------------------------------------------


class UNetCase(NamedTuple):
    """One network, described to both libraries; images are (2, size, size, 3)."""

    ours: dict[str, Any]
    theirs: dict[str, Any]
    size: int

    @property
    def classes(self) -> int:
        return self.ours.get("num_classes", 0)


def _blocks(kinds: str, up: str = "", down: str = "") -> dict[str, tuple[str, ...]]:
    """diffusers' block types; a letter per level, ``a`` with attention."""
    names = {
        "-": (down or "DownBlock2D", up or "UpBlock2D"),
        "a": ("AttnDownBlock2D", "AttnUpBlock2D"),
    }
    return {
        "down_block_types": tuple(names[kind][0] for kind in kinds),
        "up_block_types": tuple(names[kind][1] for kind in reversed(kinds)),
    }


def _ddpm(width: int, groups: int, size: int, blocks: int = 2) -> UNetCase:
    """As DDPM's CIFAR-10 network: one head at level 1, TensorFlow's padding and epsilon."""
    return UNetCase(
        dict(channels=width, blocks=blocks, norm_groups=groups),
        dict(
            block_out_channels=(width, 2 * width, 2 * width, 2 * width),
            layers_per_block=blocks,
            **_blocks("-a--"),
            flip_sin_to_cos=False,
            freq_shift=1,
            downsample_padding=0,
            norm_eps=1e-6,
            attention_head_dim=None,
            norm_num_groups=groups,
        ),
        size,
    )


def _course(width: int, groups: int, size: int, blocks: int = 2) -> UNetCase:
    """As the 28x28 network of the diffusion course, with diffusers' defaults."""
    return UNetCase(
        dict(
            channels=width,
            multipliers=(1, 2, 2),
            blocks=blocks,
            attention_levels=(1, 2),
            head_channels=8,
            flip_sin_to_cos=True,
            freq_shift=0.0,
            downsample_padding=1,
            norm_groups=groups,
            norm_eps=1e-5,
        ),
        dict(
            block_out_channels=(width, 2 * width, 2 * width),
            layers_per_block=blocks,
            **_blocks("-aa"),
            norm_num_groups=groups,
        ),
        size,
    )


def _adm(width: int, groups: int, size: int) -> UNetCase:
    """As ADM: scale and shift, resampling residual blocks, classes, a learned variance."""
    return UNetCase(
        dict(
            channels=width,
            multipliers=(1, 2, 3),
            blocks=1,
            attention_levels=(1, 2),
            head_channels=8,
            out_channels=6,
            scale_shift=True,
            resblock_updown=True,
            num_classes=10,
            flip_sin_to_cos=True,
            freq_shift=0.0,
            norm_groups=groups,
            norm_eps=0.05,  # so large that every norm which ignored it would show
        ),
        dict(
            block_out_channels=(width, 2 * width, 3 * width),
            layers_per_block=1,
            **_blocks("-aa", "ResnetUpsampleBlock2D", "ResnetDownsampleBlock2D"),
            downsample_type="resnet",
            upsample_type="resnet",
            out_channels=6,
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=10,
            norm_num_groups=groups,
            norm_eps=0.05,
            attn_norm_num_groups=groups,  # with scale and shift there would be no norm otherwise
        ),
        size,
    )


# Several channels to a group: with one, the norm would undo the time embedding.
UNETS = {"ddpm": _ddpm(32, 8, 16), "course": _course(32, 8, 28), "adm": _adm(32, 16, 16)}
SMALL_UNETS = {"ddpm": _ddpm(8, 4, 16, 1), "course": _course(8, 4, 8, 1), "adm": _adm(8, 4, 8)}


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict, its normals drawn key by key in sorted order from one stream.

    No weight is near zero, as many are after initialisation: matrices are N(0, 1/fan-in), norm
    weights N(1, .01), biases N(0, .01), embeddings N(0, 1).
    """
    rng = np.random.RandomState(seed)
    state = {}
    for key in sorted(shapes):
        value = rng.standard_normal(shapes[key])
        if key.endswith("bias"):
            value = 0.1 * value
        elif len(shapes[key]) == 1:
            value = 1 + 0.1 * value
        elif "embedding.weight" not in key:
            value = value / np.sqrt(np.prod(shapes[key][1:]))
        state[key] = value.astype(np.float32)
    return state


def unet_inputs(case: UNetCase) -> dict[str, np.ndarray]:
    """z and a cotangent (2, H, W, C), timesteps and labels (2,)."""
    rng, shape = np.random.RandomState(1), (2, case.size, case.size)
    return {
        "z": rng.standard_normal((*shape, 3)).astype(np.float32),
        "cotangent": rng.standard_normal((*shape, case.ours.get("out_channels", 3))).astype("f4"),
        "t": np.array([3, 702]),
        "label": np.array([0, 7]),
    }


def _our_unet(case: UNetCase) -> tuple[Any, Any]:
    """``params -> output``, and the parameters of a case."""
    net, given = UNet(**case.ours), unet_inputs(case)
    cond = {"label": given["label"]} if case.classes else None
    like = jax.eval_shape(net.init, jax.random.key(0), given["z"], given["t"], cond)["params"]
    empty = to_state_dict(jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like))
    params = from_state_dict(random_state({k: v.shape for k, v in empty.items()}), like)
    return lambda p: net.apply({"params": p}, given["z"], given["t"], cond), params


def our_unet(case: UNetCase) -> np.ndarray:
    """Output (2, H, W, C) of our network."""
    apply, params = _our_unet(case)
    return np.asarray(jax.jit(apply)(params))


def our_unet_with_gradients(case: UNetCase) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Output, and the gradients of <output, cotangent> as a state dict."""
    apply, params = _our_unet(case)
    cotangent = unet_inputs(case)["cotangent"]

    def loss(p: Any) -> Any:
        out = apply(p)
        return (out * cotangent).sum(), out

    grads, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    return np.asarray(out), to_state_dict(grads)


# ---- samplers -------------------------------------------------------------------------------

SHAPE = (2, 4, 4, 3)


class SamplerCase(NamedTuple):
    """Options by diffusers' names; variance is of ddpm, eta and clean (end at the data) of ddim."""

    kind: str
    steps: int
    clip: bool
    variance: str = "fixed_small"
    eta: float = 0.0
    spacing: str = "leading"
    offset: int = 0
    clean: bool = True
    prediction: str = "epsilon"
    threshold: bool = False

    @property
    def name(self) -> str:
        detail = self.variance if self.kind == "ddpm" else f"{self.eta:g}-{self.spacing}"
        parts = [self.kind, detail, str(self.steps)]
        parts += ["clip"] * self.clip + ["last"] * (not self.clean) + ["threshold"] * self.threshold
        parts += [self.prediction] * (self.prediction != "epsilon")
        return "-".join(parts)


SAMPLER_CASES = [
    *(
        SamplerCase("ddpm", steps, clip, variance)
        for variance, clip, steps in itertools.product(
            ("fixed_small", "fixed_large", "learned_range"), (False, True), (10, 50, 1000)
        )
    ),
    *(
        SamplerCase("ddim", steps, clip, eta=eta, spacing=spacing)
        for spacing, eta, clip, steps in itertools.product(
            ("leading", "trailing", "linspace"), (0.0, 0.5, 1.0), (False, True), (10, 50, 1000)
        )
    ),
    *(  # Stable Diffusion's: the last step ends at timestep 0, not at the data.
        SamplerCase("ddim", steps, False, eta=eta, offset=1, clean=False)
        for eta, steps in itertools.product((0.0, 0.5), (10, 50))
    ),
    *(
        SamplerCase(kind, steps, False, threshold=True)
        for kind, steps in itertools.product(("ddpm", "ddim"), (10, 50))
    ),
    *(
        SamplerCase(kind, steps, clip, prediction=prediction)
        for kind, prediction, clip, steps in itertools.product(
            ("ddpm", "ddim"), ("v_prediction", "sample"), (False, True), (10, 50)
        )
    ),
]
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
THRESHOLD = {"quantile": 0.9, "maximum": 1.5}


def start() -> np.ndarray:
    """Initial z."""
    return np.random.RandomState(0).standard_normal(SHAPE).astype(np.float32)


def noises(steps: int) -> np.ndarray:
    """The noise of every step."""
    return np.random.RandomState(1).standard_normal((steps, *SHAPE)).astype(np.float32)


def model(xp: Any, z: Any, t: Any) -> Any:
    """A smooth stand-in for a network that predicts noise; xp is jax.numpy or torch."""
    return 0.8 * xp.sin(1.7 * z + t / 300) + 0.3 * z


def variance_model(xp: Any, z: Any, t: Any) -> Any:
    """Variance output in [-1, 1]."""
    return xp.cos(2 * z + t / 200)


def linear_schedule(abar: np.ndarray | None = None) -> Schedule:
    """Ours in float64, or with given abar (T,)."""
    return schedules.linear() if abar is None else schedules.from_abar(np.asarray(abar, np.float64))


def our_rows(case: SamplerCase, schedule: Schedule) -> tuple[Sampler, Rows]:
    """Sampler and plan of a case."""
    if case.kind == "ddpm":
        variance = {"learned_range": "learned"}.get(case.variance, case.variance.replace("_", ""))
        sampler = samplers.ancestral(variance)
    else:
        sampler = samplers.ddim(case.eta)
    if case.spacing == "linspace":
        return sampler, _strided(sampler, grids.linspace(schedule, case.steps), schedule)
    if case.spacing == "trailing":
        return sampler, sampler.plan(grids.trailing(schedule, case.steps))
    grid = grids.leading(schedule, case.steps, offset=case.offset)
    if not case.clean:
        times = np.append(grid.levels.t[:-1], 0.0)
        grid = grids.from_times(schedule, times, final="last")
    return sampler, sampler.plan(grid)


def _strided(sampler: Sampler, grid: Grid, schedule: Schedule) -> Rows:
    """Every step taken from its t to t - T//N, as diffusers' DDIM does.

    On a linspace grid that is not where the next step starts, so this is no plan of a grid, but
    a chain of plans of one step each. A grid of ours goes where the next step starts.
    """
    times, stride = grid.levels.t[:-1], schedule.steps // grid.steps
    plans = []
    for t in times:
        pair = [t, t - stride] if t >= stride else [t]
        final = "last" if t >= stride else "clean"
        plans.append(sampler.plan(grids.from_times(schedule, pair, final=final)))
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *plans)
    index = np.arange(len(times), dtype=np.int32)
    return rows._replace(level=rows.level._replace(i=index), next=rows.next._replace(i=index))


@functools.cache
def _runner(kind: str, learned: bool, clip: bool, threshold: bool, prediction: str) -> Any:
    """Compiled sampling; cases of different lengths, eta and grids share it."""
    target = parameterization.make(PREDICTIONS[prediction], learned_variance=learned)

    def denoise(z: Any, level: Level) -> Prediction:
        raw = model(jnp, z, level.t)
        if learned:
            raw = jnp.concatenate([raw, variance_model(jnp, z, level.t)], axis=-1)
        return target.decode(raw, z, level)

    rederive = kind == "ddpm"
    if clip:
        denoise = samplers.clip(denoise, rederive_eps=rederive)
    if threshold:
        denoise = samplers.dynamic_threshold(denoise, **THRESHOLD, rederive_eps=rederive)
    sampler = samplers.ancestral("learned") if learned else samplers.ddim()

    @jax.jit
    def run(z: Any, drawn: Any, rows: Rows, n: Any) -> Any:
        return samplers.sample(lambda i, k=0: drawn[i], denoise, sampler, z, rows, n=n)

    return run


def our_sample(case: SamplerCase, schedule: Schedule) -> np.ndarray:
    """Where a case ends, (2, 4, 4, 3)."""
    rows = our_rows(case, schedule)[1]
    size = 64 if case.steps <= 64 else 1000
    drawn = np.zeros((size, *SHAPE), np.float32)
    drawn[: case.steps] = noises(case.steps)
    learned = case.variance == "learned_range"
    run = _runner(case.kind, learned, case.clip, case.threshold, case.prediction)
    return np.asarray(run(start(), drawn, samplers.pad(rows, size), case.steps))


def relative_error(value: np.ndarray, reference: np.ndarray, floor: float = 0.0) -> float:
    """Largest difference over the largest magnitude of the reference (at least ``floor``)."""
    return float(np.abs(value - reference).max() / max(np.abs(reference).max(), floor))
