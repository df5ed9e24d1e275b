"""DDPM and DDIM."""

from __future__ import annotations

from typing import Any

from configs.published.table import BITS, BOUNDS, FID, TRAIN, Published, Values, pick

_DDPM = {
    **pick("ddpm", "ddpm: diffusion_tf/nn.py:11", "network.initialisation"),
    **pick("mean", "ddpm: diffusion_tf/diffusion_utils.py:158", "loss.reduction"),
    **pick("center", "ddpm: no crop in scripts/*.py", "data.crop"),
    **pick(0.0, "ddpm: diffusion_tf/utils.py:148", "optim.lr_start"),
    **pick(0.9999, "ddpm: diffusion_tf/tpu_utils/tpu_utils.py:103", "ema.decay"),
}
_DDPM_CIFAR = {
    **_DDPM,
    **pick(128, "ddpm: scripts/run_cifar.py:134", "data.batch_size"),
    **pick(2e-4, "ddpm: scripts/run_cifar.py:134", "optim.lr"),
    **pick(5000, "ddpm: scripts/run_cifar.py:134", "optim.warmup"),
    **pick(1.0, "ddpm: scripts/run_cifar.py:134", "optim.clip"),
    **pick(True, "ddpm: scripts/run_cifar.py:137", "data.flip"),
    **pick(800_000, "paper, appendix B", "train.steps"),
}


def _ddpm256(script: str, line: int, *, steps: int, where: str, flip: Any = None) -> Values:
    place = f"ddpm: scripts/{script}:{line}"
    return {
        **_DDPM,
        **pick(64, place, "data.batch_size"),
        **pick(2e-5, place, "optim.lr"),
        **pick(5000, place, "optim.warmup"),
        **pick(1.0, place, "optim.clip"),
        "data.flip": flip or (True, f"ddpm: scripts/{script}:{line + 2}"),
        "train.steps": (steps, where),
    }


def _ddpm_lsun(steps: int, **options: Any) -> Values:
    return _ddpm256("run_lsun.py", 118, steps=steps, where="paper, appendix B", **options)


def _ddim_trained(name: str, *, batch: int, lr: float, average: float, clip: Any) -> Values:
    place = f"ddim: configs/{name}.yml"
    lines = (33, 8, 22, 46, 35) if name == "celeba" else (34, 9, 23, 47, 36)
    return {
        **pick("torch", "ddim: models/diffusion.py, PyTorch's default", "network.initialisation"),
        **pick("sum", "ddim: functions/losses.py:15", "loss.reduction"),
        **pick("antithetic", "ddim: runners/diffusion.py:147", "times.name"),
        **pick("center", "ddim: datasets/__init__.py", "data.crop"),
        **pick(0, "ddim: no warm-up in runners/diffusion.py", "optim.warmup"),
        **pick(batch, f"{place}:{lines[0]}", "data.batch_size"),
        **pick(True, f"{place}:{lines[1]}", "data.flip"),
        **pick(average, f"{place}:{lines[2]}", "ema.decay"),
        **pick(lr, f"{place}:{lines[3]}", "optim.lr"),
        **pick(5_000_000, f"{place}:{lines[4]}", "train.steps"),
        "optim.clip": clip,
        **pick("strided", "ddim: runners/diffusion.py:345", "sample.grid"),
    }


_LSUN = "50,000 samples, beside the training set, with the code of StyleGAN2"
_UNLIMITED = "The code reads no number of steps; that of its config is listed."
_NO_CLIP = (
    0.0,
    "ddim: no grad_clip in the config, so runners/diffusion.py:164 fails and is passed",
)
DDPM = {
    "ddpm:cifar10": Published(
        {**_DDPM_CIFAR, **pick("fixedlarge", "ddpm: scripts/run_cifar.py:136", "sample.variance")},
        "FID 3.17 on the training set, 5.24 on the test set; IS 9.46; at most 3.75 bits/dim",
        f"{BITS}\n{FID} --reference=TEST_IMAGES",
        against=f"{BOUNDS}. TEST_IMAGES is a folder of the 10,000 test images",
    ),
    "ddpm:celeba_hq": Published(
        _ddpm256("run_celebahq.py", 134, steps=500_000, where="paper, appendix B")
    ),
    "ddpm:lsun_bedroom": Published(_ddpm_lsun(2_400_000), "FID 6.36", FID, against=_LSUN),
    "ddpm:lsun_bedroom_large": Published(
        _ddpm_lsun(1_150_000),
        "FID 4.90",
        FID,
        ("The width, 192, is inferred from the 256M parameters that the paper gives.",),
        _LSUN,
    ),
    "ddpm:lsun_church": Published(_ddpm_lsun(1_200_000), "FID 7.89", FID, against=_LSUN),
    "ddpm:lsun_cat": Published(
        _ddpm_lsun(1_800_000, flip=(False, "ddpm: scripts/run_lsun.py:13")),
        "FID 19.75",
        FID,
        against=_LSUN,
    ),
    "ddim:cifar10": Published(
        {**_DDPM_CIFAR, **pick("quadratic", "ddim: runners/diffusion.py:349", "sample.grid")},
        "FID 13.36/6.84/4.67/4.16/4.04 at 10/20/50/100/1000 steps, of DDPM's weights",
        f"{FID} --steps=50",
        against=f"{TRAIN}, for each number of steps",
    ),
    "ddim:celeba64": Published(
        {
            **_ddim_trained(
                *("celeba",),
                batch=128,
                lr=2e-4,
                average=0.9999,
                clip=(1.0, "ddim: configs/celeba.yml:50"),
            ),
            **pick((57, 25, 128, 128), "ddim: datasets/__init__.py:62", "data.window"),
        },
        "FID 17.33/13.73/9.17/6.53/3.51 at 10/20/50/100/1000 steps",
        f"{FID} --steps=50",
        (_UNLIMITED,),
        f"{TRAIN}, for each number of steps",
    ),
    "ddim:lsun_bedroom": Published(
        _ddim_trained("bedroom", batch=64, lr=2e-5, average=0.999, clip=_NO_CLIP),
        "pictures alone, of DDPM's weights",
        differs=(_UNLIMITED,),
    ),
    "ddim:lsun_church": Published(
        _ddim_trained("church", batch=64, lr=2e-5, average=0.999, clip=_NO_CLIP),
        "pictures alone, of DDPM's weights",
        differs=(_UNLIMITED,),
    ),
}
