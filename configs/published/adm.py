"""Improved DDPM, ADM and classifier-free guidance."""

from __future__ import annotations

from configs.published.table import (
    BITS,
    BOUNDS,
    FID,
    TRAIN,
    Published,
    Values,
    pick,
    virtual,
)

_IDDPM = {
    **pick("adm", "iddpm: improved_diffusion/unet.py:158", "network.initialisation"),
    **pick("mean", "iddpm: improved_diffusion/gaussian_diffusion.py:742", "loss.reduction"),
    **pick(False, "iddpm: no flip in improved_diffusion/image_datasets.py", "data.flip"),
    **pick("center", "iddpm: improved_diffusion/image_datasets.py:98", "data.crop"),
    **pick(0, "iddpm: no warm-up in improved_diffusion/train_util.py", "optim.warmup"),
    **pick(0.0, "iddpm: no clip in improved_diffusion/train_util.py", "optim.clip"),
    **pick(0.9999, "iddpm: scripts/image_train.py:69", "ema.decay"),
}


_HALVES = pick("halves", "iddpm: improved_diffusion/image_datasets.py:87", "data.resize")


def _iddpm(line: int, *, steps: int, lr: float = 1e-4, batch: int = 128) -> Values:
    place = f"iddpm: README.md:{line}"
    found = {**pick(lr, place, "optim.lr"), **pick(batch, place, "data.batch_size")}
    return {**_IDDPM, **found, "train.steps": (steps, "paper, section 3 and table 2")}


_ADM = {
    **pick("adm", "adm: guided_diffusion/unet.py:210", "network.initialisation"),
    **pick("mean", "adm: guided_diffusion/gaussian_diffusion.py:809", "loss.reduction"),
    **pick(True, "adm: guided_diffusion/image_datasets.py:19", "data.flip"),
    **pick("center", "adm: guided_diffusion/image_datasets.py:141", "data.crop"),
    **pick("halves", "adm: guided_diffusion/image_datasets.py, center_crop_arr", "data.resize"),
    **pick(0, "adm: no warm-up in guided_diffusion/train_util.py", "optim.warmup"),
    **pick(0.0, "adm: no clip in guided_diffusion/train_util.py", "optim.clip"),
    **pick(0.9999, "adm: scripts/image_train.py:69", "ema.decay"),
}


def _adm(*, steps: int, lr: float, batch: int) -> Values:
    found = {"train.steps": steps, "optim.lr": lr, "data.batch_size": batch}
    paper = {key: (value, "paper, appendix I (hyperparameters)") for key, value in found.items()}
    return {**_ADM, **paper, **pick(250, "adm: README.md:38", "sample.steps")}


def _adm_classifier(*, steps: int, lr: float, batch: int, decay: float) -> Values:
    found = {"train.steps": steps, "optim.lr": lr, "data.batch_size": batch}
    place = "adm: scripts/classifier_train.py"
    return {
        **{key: value for key, value in _ADM.items() if key != "loss.reduction"},
        **{key: (value, "paper, appendix I (hyperparameters)") for key, value in found.items()},
        **pick(decay, "paper, appendix I (hyperparameters)", "optim.weight_decay"),
        **pick("mean", f"{place}, which has no pixels to sum", "loss.reduction"),
        **pick("random_after", f"{place}:79, random_crop_arr", "data.crop"),
        **pick((0.8, 1.0), "adm: guided_diffusion/image_datasets.py:146", "data.crop_share"),
        **pick("linear", f"{place}:145", "optim.decay"),
        **pick(0.0, f"{place}:166", "ema.decay"),
        **pick("direct", "adm: guided_diffusion/unet.py:22", "network.head"),
    }


def _cfg(*, steps: int, lr: float, batch: int) -> Values:
    own = "paper, section 4: as ADM"
    return {
        **{key: (value, f"{own} ({where})") for key, (value, where) in _ADM.items()},
        **pick(lr, own, "optim.lr"),
        **pick(batch, own, "data.batch_size"),
        **pick(steps, "paper, section 4.1", "train.steps"),
    }


def _guided(size: int, scale: float) -> str:
    """The commands without guidance, and with an exported classifier."""
    judge = f"--config.sample.classifier=imagenet{size}_classifier.safetensors"
    return f"{FID}\n{FID} {judge} --guidance={scale}"


_IMAGENET_BITS = BITS.replace("10000", "50000")  # the validation pictures
_README_FLAGS = (
    "README.md:160 of the release has batch 256 and rate 3e-4 where the paper's table has these."
)
_CFG_CODE = "No code was released; what the paper leaves to ADM is ADM's."
ADM = {
    "improved_ddpm:cifar10": Published(
        _iddpm(97, steps=500_000), "FID 3.19, at most 3.17 bits/dim", BITS, against=BOUNDS
    ),
    "improved_ddpm:cifar10_vlb": Published(
        _iddpm(145, steps=500_000), "FID 11.47, at most 2.94 bits/dim", BITS, against=BOUNDS
    ),
    "improved_ddpm:imagenet64": Published(
        {**_iddpm(89, steps=1_500_000), **_HALVES},
        "FID 19.2, at most 3.57 bits/dim",
        _IMAGENET_BITS,
        against=BOUNDS,
    ),
    "improved_ddpm:imagenet64_vlb": Published(
        {**_iddpm(137, steps=1_500_000), **_HALVES},
        "FID 40.1, at most 3.53 bits/dim",
        _IMAGENET_BITS,
        against=BOUNDS,
    ),
    "improved_ddpm:imagenet64_cond": Published(
        {**_iddpm(105, steps=250_000, lr=3e-4, batch=2048), **_HALVES}
    ),
    "adm:imagenet64": Published(
        _adm(steps=540_000, lr=3e-4, batch=2048),
        "FID 2.07",
        FID,
        against=virtual("imagenet64_labeled"),
    ),
    "adm:imagenet128": Published(
        _adm(steps=4_360_000, lr=1e-4, batch=256),
        "FID 5.91; guided with scale 0.5: 2.97",
        _guided(128, 0.5),
        against=virtual("imagenet128_labeled"),
    ),
    "adm:imagenet256": Published(
        _adm(steps=1_980_000, lr=1e-4, batch=256),
        "FID 10.94; guided with scale 1: 4.59",
        _guided(256, 1),
        against=virtual("imagenet256_labeled"),
    ),
    "adm:imagenet512": Published(
        _adm(steps=1_940_000, lr=1e-4, batch=256),
        "FID 23.24; guided with scale 4: 7.72",
        _guided(512, 4),
        against=virtual("imagenet512"),
    ),
    "adm:imagenet64_classifier": Published(
        _adm_classifier(steps=300_000, lr=6e-4, batch=1024, decay=0.2)
    ),
    "adm:imagenet128_classifier": Published(
        _adm_classifier(steps=300_000, lr=6e-4, batch=1024, decay=0.05),
        differs=(_README_FLAGS,),
    ),
    "adm:imagenet256_classifier": Published(
        _adm_classifier(steps=500_000, lr=3e-4, batch=256, decay=0.05)
    ),
    "adm:imagenet512_classifier": Published(
        _adm_classifier(steps=500_000, lr=3e-4, batch=256, decay=0.05)
    ),
    "cfg:imagenet64": Published(
        _cfg(steps=400_000, lr=3e-4, batch=2048),
        "FID 1.80 at w = 0, 1.55 at 0.1, 12.6 at 1 (guidance is 1 + w)",
        f"{FID} --guidance=1\n{FID} --guidance=1.1\n{FID} --guidance=2",
        (_CFG_CODE,),
        TRAIN,
    ),
    "cfg:imagenet128": Published(
        _cfg(steps=2_700_000, lr=1e-4, batch=256),
        "FID 7.27 at w = 0, 2.43 at 0.3, 7.86 at 1 (guidance is 1 + w)",
        f"{FID} --guidance=1\n{FID} --guidance=1.3\n{FID} --guidance=2",
        (_CFG_CODE,),
        TRAIN,
    ),
}
