"""The rows of the speed suites by diffjax: the networks, steps and samplers that its users run.

Started by `speed`. ``python -m experiments.benchmarks.sides.by_diffjax FOLDER prepare`` describes
the networks of a row in diffusers' terms, and draws the weights and inputs that all sides read.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import functools  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import platform  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import diffjax  # noqa: E402, F401  it sets flags that JAX reads

# isort: split
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from diffjax import metrics, runs  # noqa: E402
from diffjax.config.variants import load_config  # noqa: E402
from diffjax.launch.program_costs import count_flops  # noqa: E402
from diffjax.model import Model, make_sampler, make_steering, sample  # noqa: E402
from diffjax.model.image_maker import ImageInputs, ImageMaker  # noqa: E402
from diffjax.nets.unet import UNet  # noqa: E402
from diffjax.pretrained import configs, from_state_dict  # noqa: E402
from diffjax.pretrained.state_dict import list_state_shapes  # noqa: E402
from diffjax.pretrained.unet_configs import describe_unet  # noqa: E402
from diffjax.tasks.diffusion_task import init_params  # noqa: E402
from diffjax.train import init_state, make_optimizer  # noqa: E402
from diffjax.train.prepare import compile_step  # noqa: E402
from diffjax.train.sharding import make_mesh, make_tree_sharding  # noqa: E402
from diffjax.types import Array, Params  # noqa: E402
from diffjax.xla import set_gpu_level  # noqa: E402
from experiments.benchmarks.sides.server import Call, Work, read_work, serve  # noqa: E402

# Images that sides are compared by, at most.
CHECKED = 2


class _Made(NamedTuple):
    """A call of a kind.

    Attributes:
        run: does the work.
        check: computes what sides must agree in, or None.
        flops: operations of a call's products and convolutions.
        compile_seconds: tracing and compiling; None if the first call does it.
    """

    run: Callable[[], Any]
    check: Callable[[], np.ndarray] | None
    flops: float
    compile_seconds: float | None = None


# ---- the model of a row, and what all sides are given -------------------------------------------


def make_config(options: dict[str, Any]) -> ConfigDict:
    """Make the config of a row: embeddings in place of text encoders, and the row's changes."""
    cfg = load_config(f"configs/{options['config']}")
    if cfg.cond.context:
        cfg.cond.context = "given"
        for name in ("text", "text_2"):
            if name in cfg.cond:
                del cfg.cond[name]
        cfg.data.bucket_step = 0
    if "model" in cfg:
        del cfg.model
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in options["changes"].items()}
    cfg.update_from_flattened_dict(changes)
    if cfg.network.added_dim:
        cfg.cond.given.pooled = cfg.network.added_dim - 6 * cfg.network.added_time_dim
    return cfg


def describe_network(net: UNet, channels: int) -> dict[str, Any]:
    """Describe a UNet in diffusers' terms: a UNet2DModel if it reads no tokens.

    Raises:
        ValueError: diffusers has no such network.
    """
    found = describe_unet(net, channels)
    if net.context_dim:
        return dict(found)
    levels = range(len(net.multipliers))
    kinds = ["Attn" if i in net.attention_levels else "" for i in levels]
    kept = ("in_channels", "out_channels", "flip_sin_to_cos", "freq_shift", "block_out_channels")
    kept += ("layers_per_block", "downsample_padding", "dropout", "norm_num_groups", "norm_eps")
    return {
        **{name: found[name] for name in kept},
        "_class_name": "UNet2DModel",
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "attention_head_dim": None,  # one head
    }


def draw_weights(like: Params) -> dict[str, np.ndarray]:
    """Draw a state dict with kernels that keep the size of activations.

    He et al. (2015): the variance of a kernel is 2 over its number of inputs.
    """
    rng = np.random.default_rng(0)

    def draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
        """Draw one array: ones for scales and variances, zeros for biases and means."""
        if len(shape) == 1:
            return np.full(shape, key.endswith(("weight", "running_var")), np.float32)
        scale = np.float32((2 / np.prod(shape[1:])) ** 0.5)
        return rng.standard_normal(shape, np.float32) * scale

    return {key: draw(key, shape) for key, shape in list_state_shapes(like).items()}


def _make_shapes(model: Model) -> Params:
    """Describe the parameters of a model's network by shapes."""
    shapes: Params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    return shapes


def _make_vae_shapes(model: Model) -> Params:
    """Describe the parameters of a model's autoencoder by shapes."""
    return configs.shapes(model.space.net, configs.describe(model.space.net))


def draw_inputs(work: Work, model: Model | None) -> dict[str, np.ndarray]:
    """Draw what all sides are given: z, t, images and conditions, or two matrices."""
    rng, n = np.random.default_rng(1), work.batch
    if work.kind == "matmul":
        return {name: rng.standard_normal((n, n), np.float32) for name in "ab"}
    if model is None:
        return {"image": rng.integers(0, 256, (n, 299, 299, 3), np.uint8)}
    h, w, _ = model.space.shape
    factor = model.space.net.factor if model.space.net else 1
    drawn = {
        "z": rng.standard_normal((n, *model.space.shape), np.float32),
        "t": rng.integers(0, 1000, n),
    }
    if work.kind == "encode":
        drawn["image"] = rng.uniform(-1, 1, (n, h * factor, w * factor, 3)).astype(np.float32)
    example = model.condition.example or {}
    flat = {"context": example["context"], **example.get("added", {})} if example else {}
    shapes = {name: (n, *value.shape[1:]) for name, value in flat.items()}
    return drawn | {k: rng.standard_normal(v, np.float32) for k, v in shapes.items()}


def prepare(work: Work) -> None:
    """Write descriptions, weights and inputs to the folder of a row."""
    model = None
    if work.options["config"]:
        cfg = make_config(work.options)
        model = runs.build_model(cfg)
        net: dict[str, Any] = {}
        if work.options["described"]:  # peers read it; there may be none, and no words for it
            net = describe_network(model.network, model.space.shape[-1])
            net["sample_size"] = model.space.shape[0]  # which pipelines draw
        nets = {"unet": (net, _make_shapes(model))}
        if work.kind in ("encode", "decode"):
            nets = {}
        if work.kind in ("encode", "decode", "generate"):
            nets["vae"] = (configs.describe(model.space.net), _make_vae_shapes(model))
        for name, (config, like) in nets.items():
            (work.folder / f"{name}.json").write_text(json.dumps(config))
            save_file(draw_weights(like), work.folder / f"{name}.safetensors")
    elif work.kind == "features":
        save_file(draw_weights(metrics.inception_shapes()), work.folder / "inception.safetensors")
    np.savez(work.folder / "inputs.npz", **draw_inputs(work, model))


# ---- the kinds of rows --------------------------------------------------------------------------


def _load(work: Work, name: str, like: Params, dtype: Any = jnp.float32) -> Params:
    """Load the weights that `prepare` drew."""
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), like)
    state = load_file(work.folder / f"{name}.safetensors")
    return jax.tree.map(jnp.asarray, from_state_dict(state, like))


def _split_condition(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Select the entries of a condition among the inputs; none if the model has none."""
    return {k: v for k, v in inputs.items() if k in ("context", "text_embeds", "time_ids")}


def _take_condition(model: Model, inputs: dict[str, np.ndarray]) -> Any:
    """Take the raw condition from the inputs; None if the model has none."""
    entries = _split_condition(inputs)
    return model.condition.take(entries, jax.random.key(0)) if entries else None


def _compile(function: Any, *arguments: Any) -> tuple[jax.stages.Compiled, float]:
    """Compile a jitted function for arguments, and return it with the seconds that this took."""
    begun = time.perf_counter()
    return function.lower(*arguments).compile(), time.perf_counter() - begun


def _evaluate(model: Model) -> Any:
    """Make the jitted evaluation ``(params, z, t, raw condition) -> raw output``."""

    @jax.jit
    def evaluate(params: Params, z: Array, t: Array, raw: Any) -> Array:
        """Evaluate the network."""
        cond = None if raw is None else model.condition.encode(params, {}, {}, raw)
        return model.network.apply({"params": params}, z, t, cond)

    return evaluate


def _check_network(work: Work, model: Model, params: Params) -> np.ndarray:
    """Evaluate the network on the first images."""
    first = {k: v[:CHECKED] for k, v in work.read_inputs().items()}
    cond = _take_condition(model, first)
    return np.asarray(_evaluate(model)(params, first["z"], first["t"], cond), np.float32)


def _make_evaluation(work: Work) -> _Made:
    """Make the call of one evaluation of a UNet."""
    model = runs.build_model(make_config(work.options))
    params, inputs = _load(work, "unet", _make_shapes(model)), work.read_inputs()
    evaluate = _evaluate(model)
    given = (params, inputs["z"], inputs["t"], _take_condition(model, inputs))
    program, seconds = _compile(evaluate, *given)
    return _Made(
        lambda: jax.block_until_ready(program(*given)),
        lambda: np.asarray(program(*given))[:CHECKED],
        count_flops(evaluate, *given),
        seconds,
    )


def _make_step(work: Work) -> _Made:
    """Make the call of one training step, which is the trainer's own."""
    cfg = make_config(work.options)
    cfg.data.batch_size = work.batch
    task, model, inputs = runs.build_task(cfg), runs.build_model(cfg), work.read_inputs()
    optimizer, mesh = make_optimizer(cfg.optim, cfg.train.steps), make_mesh(cfg.mesh)
    batch: dict[str, Any] = _split_condition(inputs)
    if model.space.net is None:
        batch["image"] = np.tanh(inputs["z"])
    else:  # latents that were stored: means and logarithms of variances
        batch["moments"] = np.concatenate([inputs["z"], np.full_like(inputs["z"], -10)], -1)
    init = functools.partial(init_state, task, optimizer, jax.random.key(0), None)
    shapes = jax.eval_shape(init, batch)
    placed = make_tree_sharding(shapes, mesh)
    state = jax.jit(init, out_shardings=placed)(batch)
    params = _load(work, "unet", shapes.params)
    first = _check_network(work, model, params) if work.options["checked"] else None
    twice = jax.jit(lambda p: (jax.tree.map(jnp.copy, p),) * 2, out_shardings=(placed.params,) * 2)
    state = state._replace(**dict(zip(("params", "ema"), twice(params), strict=True)))
    del params
    step = compile_step(task, optimizer, cfg, (placed, make_tree_sharding(None, mesh)), mesh)
    program, seconds = _compile(step, state, None, batch)
    flops = count_flops(step, state, None, batch)

    def run() -> None:
        """Train on the batch, and read the loss."""
        nonlocal state
        state, found = program(state, None, batch)
        float(found["loss"])

    return _Made(run, None if first is None else lambda: first, flops, seconds)


def _make_sampling(work: Work) -> _Made:
    """Make the call that draws images in memory from noise, by DDIM."""
    cfg = make_config(work.options)
    cfg = runs.replace_sample(cfg, sampler="ddim", steps=work.steps)
    model = runs.build_model(cfg)
    model = model._replace(params=_load(work, "unet", _make_shapes(model)))
    (sampler, rows), inputs = make_sampler(cfg, model), work.read_inputs()
    maker = ImageMaker(model, make_mesh(), make_steering(cfg))

    def run() -> np.ndarray:
        """Draw the images."""
        return maker(
            lambda numbers: ImageInputs(None, ()), sampler, rows, num=work.batch,
            batch_size=work.batch,
        )  # fmt: skip

    given = (model.params, inputs["z"], inputs["t"], None)
    flops = work.steps * count_flops(_evaluate(model), *given)
    return _Made(run, lambda: _check_network(work, model, model.params or {}), flops)


def _make_generation(work: Work) -> _Made:
    """Make the call that draws guided latents by DDIM, and decodes them."""
    cfg = make_config(work.options)
    cfg.autoencoder.dtype = cfg.network.dtype
    cfg = runs.replace_sample(cfg, sampler="ddim", steps=work.steps)
    model = runs.build_model(cfg)
    dtype = jnp.dtype(cfg.network.dtype)
    params = _load(work, "unet", _make_shapes(model), dtype)
    vae = _load(work, "vae", _make_vae_shapes(model), dtype)
    model = model._replace(
        params=params, frozen={"autoencoder": vae}, statistics=dict(model.space.extra)
    )
    sampler, rows = make_sampler(cfg, model)
    steering, scale = make_steering(cfg), np.full(len(rows.level.t), 7.5, np.float32)
    cond = _take_condition(model, work.read_inputs())
    keys = jax.random.split(jax.random.key(0), work.batch)

    @jax.jit
    def generate(arrays: Any, cond: Any, keys: Array) -> Array:
        """Draw the images."""
        own = model.with_arrays(arrays)
        return sample(own, cond, sampler, rows, keys, scale=scale, steering=steering)

    program, seconds = _compile(generate, model.arrays, cond, keys)
    flops = count_flops(generate, model.arrays, cond, keys)
    check = functools.partial(_check_network, work, model, params)
    return _Made(lambda: np.asarray(program(model.arrays, cond, keys)), check, flops, seconds)


def _make_autoencoder(work: Work) -> _Made:
    """Make the call that encodes or decodes by the autoencoder."""
    model = runs.build_model(make_config(work.options))
    net, inputs = model.space.net, work.read_inputs()
    params = _load(work, "vae", _make_vae_shapes(model))
    x = inputs["image" if work.kind == "encode" else "z"]

    @jax.jit
    def compute(params: Params, x: Array) -> Array:
        """Return the moments, or the image."""
        if work.kind == "encode":
            found = net.apply({"params": params}, x, method=net.encode)
            return jnp.concatenate([found.mean, found.logvar], -1)
        return net.apply({"params": params}, x, method=net.decode)

    program, seconds = _compile(compute, params, x)
    return _Made(
        lambda: jax.block_until_ready(program(params, x)),
        lambda: np.asarray(program(params, x)),
        count_flops(compute, params, x),
        seconds,
    )


def _make_features(work: Work) -> _Made:
    """Make the call of Inception's features of uint8 images."""
    params = _load(work, "inception", metrics.inception_shapes())
    network = metrics.inception_network(params, batch_size=work.batch)
    images = work.read_inputs()["image"]

    def compute() -> np.ndarray:
        """Return the features (B, 2048)."""
        return metrics.extract(network, images).features

    return _Made(compute, compute, math.nan)


def _make_product(work: Work) -> _Made:
    """Make the call of a product of two matrices, which gives the machine's peak."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    a, b = (jnp.asarray(work.read_inputs()[name], dtype) for name in "ab")
    multiply = jax.jit(jnp.matmul)
    program, seconds = _compile(multiply, a, b)
    return _Made(
        lambda: jax.block_until_ready(program(a, b)),
        lambda: np.asarray(program(a, b)[:64, :64], np.float32),
        2.0 * work.batch**3,
        seconds,
    )


MAKERS = {
    "matmul": _make_product,
    "evaluate": _make_evaluation,
    "train": _make_step,
    "sample": _make_sampling,
    "encode": _make_autoencoder,
    "decode": _make_autoencoder,
    "generate": _make_generation,
    "features": _make_features,
}


def make_call(work: Work) -> Call:
    """Make the call of a row's kind."""
    set_gpu_level()
    made = MAKERS[work.kind](work)
    device = jax.devices()[0]
    facts = {
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "device": device.device_kind,
        "devices": jax.device_count(),
        "flops": None if math.isnan(made.flops) else made.flops,
        "compile_seconds": made.compile_seconds,
    }

    def read_peak() -> int | None:
        """Read the peak of the accelerator's memory."""
        return (device.memory_stats() or {}).get("peak_bytes_in_use")

    return Call(made.run, made.check, facts, read_peak)


if __name__ == "__main__":
    if sys.argv[2] == "prepare":
        prepare(read_work())
    else:
        serve(make_call, STARTED)
