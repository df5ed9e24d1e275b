"""DiT, SiT and REPA."""

from __future__ import annotations

from configs.published.table import FID, Published, Values, pick, virtual

_OWN_STEPS = (
    "Every image takes steps of its own in RK45 and ends at the data; torchdiffeq steps a batch at "
    "once, passes the end, and interpolates."
)
_HALF = "The output has no second half; the release's has one that nothing reads."
# FID of 50,000 samples without guidance after 400,000 steps (Peebles & Xie 2023, table 4).
_DIT = {
    "s_8": 153.60, "s_4": 100.41, "s_2": 68.40, "b_8": 122.74, "b_4": 68.38, "b_2": 43.47,
    "l_8": 118.87, "l_4": 45.64, "l_2": 23.33, "xl_8": 106.41, "xl_4": 43.01,
}  # fmt: skip
# The same of Ma et al. 2024, table 1, whose sampler of it is the SDE.
_SIT = {"s": 57.6, "b": 33.5, "l": 18.8}


def _train(steps: int, *, release: str, rate: int, flip: int, init: int, loss: str) -> Values:
    """Return the settings that all sizes share, with lines of train.py and models.py."""
    return {
        **pick(steps, "paper, section 4 and tables", "train.steps"),
        **pick(256, f"{release}: train.py, --global-batch-size", "data.batch_size"),
        **pick(True, f"{release}: train.py:{flip}", "data.flip"),
        **pick("center", f"{release}: train.py:{flip - 1}", "data.crop"),
        **pick("halves", f"{release}: train.py, center_crop_arr", "data.resize"),
        **pick(1e-4, f"{release}: train.py:{rate}", "optim.lr"),
        **pick("adamw", f"{release}: train.py:{rate}", "optim.name"),
        **pick(0.0, f"{release}: train.py:{rate}", "optim.weight_decay"),
        **pick(0, f"{release}: no schedule in train.py", "optim.warmup"),
        **pick(0.0, f"{release}: no clipping in train.py", "optim.clip"),
        **pick(0.9999, f"{release}: train.py:40", "ema.decay"),
        **pick("mean", f"{release}: {loss}", "loss.reduction"),
        **pick(
            "ddpm",
            f"{release}: models.py:{init}; the transformer has no other, and reads no key",
            "network.initialisation",
        ),
        **pick(0.18215, f"{release}: train.py", "autoencoder.scale"),
        **pick(0.1, f"{release}: models.py, class_dropout_prob", "cond.drop"),
    }


def _dit(steps: int) -> Values:
    loss = "diffusion/gaussian_diffusion.py:779"
    values = _train(steps, release="dit", rate=155, flip=160, init=186, loss=loss)
    return {
        **values,
        **pick(250, "dit: sample_ddp.py:159", "sample.steps"),
        **pick(3, "dit: models.py:262", "sample.guidance_channels"),
    }


def _sit(steps: int) -> Values:
    loss = "transport/transport.py:140"
    return {
        **_train(steps, release="sit", rate=181, flip=186, init=183, loss=loss),
        **pick(0.0, "sit: transport/__init__.py:53", "schedule.t_min"),
        **pick(1.0, "sit: transport/__init__.py:53", "schedule.t_max"),
        **pick(-1.0, "sit: transport/path.py:23, time runs to the data", "network.time_scale"),
        **pick(1.0, "sit: transport/path.py:23, time runs to the data", "network.time_shift"),
        **pick("rk45", "sit: train_utils.py:16", "sample.sampler"),
        **pick(1e-6, "sit: train_utils.py:17", "sample.atol"),
        **pick(1e-3, "sit: train_utils.py:18", "sample.rtol"),
        **pick(3, "sit: models.py:261", "sample.guidance_channels"),
    }


def _repa() -> Values:
    return {
        **pick(4_000_000, "repa: README.md:138, the checkpoint of the figure", "train.steps"),
        **pick(256, "repa: train.py:407", "data.batch_size"),
        **pick(False, "repa: no flips in dataset.py", "data.flip"),
        **pick("center", "repa: preprocessing/README.md:13", "data.crop"),
        **pick("halves", "repa: preprocessing/dataset_tools.py:177", "data.resize"),
        **pick(1e-4, "repa: train.py:418", "optim.lr"),
        **pick("adamw", "repa: train.py:204", "optim.name"),
        **pick(0.0, "repa: train.py:421", "optim.weight_decay"),
        **pick(0, "repa: no schedule in train.py", "optim.warmup"),
        **pick(1.0, "repa: train.py:423", "optim.clip"),
        **pick(0.9999, "repa: train.py:81", "ema.decay"),
        **pick("mean", "repa: loss.py:78", "loss.reduction"),
        **pick(
            "ddpm",
            "repa: models/sit.py:216; the transformer has no other, and reads no key",
            "network.initialisation",
        ),
        **pick(0.18215, "repa: train.py:180", "autoencoder.scale"),
        **pick(0.1, "repa: models/sit.py:176", "cond.drop"),
        **pick(0.5, "repa: train.py:436", "align.weight"),
        **pick(8, "repa: train.py:400", "align.block"),
        **pick(2048, "repa: models/sit.py:180", "align.width"),
        **pick(768, "repa: train.py:435, ViT-B", "align.vision.features"),
        **pick(0.0, "repa: loss.py:57", "schedule.t_min"),
        **pick(1.0, "repa: loss.py:57", "schedule.t_max"),
        **pick("euler_maruyama", "repa: README.md:132, --mode", "sample.sampler"),
        **pick(250, "repa: README.md:133, --num-steps", "sample.steps"),
        **pick("sigma", "repa: samplers.py:43", "sample.diffusion"),
        **pick(2.0, "repa: samplers.py:43", "sample.strength"),
        **pick(0.04, "repa: samplers.py:122", "sample.t_end"),
        **pick(1.8, "repa: README.md:134, --cfg-scale", "sample.guidance"),
        **pick(7 / 3, "repa: README.md:135, sigma / alpha at t = 0.7", "sample.guidance_high"),
        **pick(0, "repa: samplers.py:151, all channels", "sample.guidance_channels"),
    }


_AT_400K = "FID {} after 400,000 steps without guidance"
_PLAIN = f"{FID} --guidance=1"
# The SDE of train_utils.py: 250 evaluations, the last of which steps 0.04 and adds no noise.
_SDE = (
    "--sampler=euler_maruyama --steps=250 --config.sample.diffusion=sigma "
    "--config.sample.strength=2 --config.sample.final=clean --config.sample.t_end=0.04"
)
_GUIDED = f"{FID} --guidance=1.5"
_BOTH = f"{_PLAIN}\n{FID} --guidance=1.5"
_PIXELS = virtual("imagenet256_labeled")
TRANSFORMERS = {
    **{
        f"dit:{name}": Published(_dit(400_000), _AT_400K.format(fid), _PLAIN, against=_PIXELS)
        for name, fid in _DIT.items()
    },
    "dit:xl_2": Published(
        _dit(7_000_000), "FID 9.62; 2.27 at guidance 1.5", _BOTH,
        against=_PIXELS,
    ),
    "dit:xl_2_512": Published(
        _dit(3_000_000), "FID 12.03; 3.04 at guidance 1.5", _BOTH,
        against=virtual("imagenet512"),
    ),
    **{
        f"dit:sit_{name}_2": Published(
            _sit(400_000), _AT_400K.format(fid), f"{_PLAIN} {_SDE}", (_OWN_STEPS, _HALF), _PIXELS
        )
        for name, fid in _SIT.items()
    },
    "dit:sit_xl_2": Published(
        _sit(7_000_000), "FID 2.15 (ODE) and 2.06 (SDE) at guidance 1.5",
        f"{_GUIDED}\n{_GUIDED} {_SDE}", (_OWN_STEPS, _HALF), _PIXELS,
    ),
    "dit:repa_xl_2": Published(_repa(), "FID 1.42 at guidance 1.8", FID, against=_PIXELS),
}  # fmt: skip
