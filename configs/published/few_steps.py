"""Consistency models and MeanFlow."""

from __future__ import annotations

from configs.published.table import FID, TRAIN, Published, pick

_JCM = "jcm: configs/cifar10_ve_{}.py"
_BASE = "The base is a run of edm:cifar10 and not the released model."
_PAPER = "iCT, table 1 and appendix"


def _consistency(name: str, steps: int) -> dict[str, tuple[object, str]]:
    place = _JCM.format(name)
    return {
        **pick("score_sde", "jcm: jcm/models/layers.py", "network.initialisation"),
        **pick(steps, f"{place}, n_iters", "train.steps"),
        **pick(512, f"{place}, batch_size", "data.batch_size"),
        **pick("center", "jcm: jcm/datasets.py, no crop", "data.crop"),
        **pick(True, "jcm: configs/default_cifar10_configs.py, random_flip", "data.flip"),
        **pick("mean", "jcm: jcm/losses.py:292", "loss.reduction"),
        **pick("radam", f"{place}, optimizer", "optim.name"),
        **pick(4e-4, "jcm: launch.sh", "optim.lr"),
        **pick(10_000_000 // 512, f"{place}, warmup", "optim.warmup"),
        **pick(0.0, f"{place}, grad_clip is infinite", "optim.clip"),
        **pick(0.9999, f"{place}, ema_rate", "ema.decay"),
        **pick(False, f"{place}, weighting is uniform", "loss.by_step"),
        **pick("lpips", f"{place}, loss_norm", "loss.metric"),
    }


FEW_STEPS = {
    "consistency:cifar10_ct": Published(
        {
            **_consistency("ct_adaptive", 800_000),
            **pick("growing", f"{_JCM.format('ct_adaptive')}, scale_mode", "loss.spacing"),
            **pick(2, f"{_JCM.format('ct_adaptive')}, start_scales", "loss.first"),
            **pick(150, f"{_JCM.format('ct_adaptive')}, end_scales", "loss.last"),
            **pick(0.9, f"{_JCM.format('ct_adaptive')}, start_ema", "loss.initial_decay"),
        },
        "FID 8.70, one evaluation; 5.83, two",
        f"{FID} --steps=1",
        against=TRAIN,
    ),
    "consistency:cifar10_cd": Published(
        {
            **_consistency("cd", 800_001),
            **pick(17, f"{_JCM.format('cd')}, num_scales is 18", "loss.first", "loss.last"),
            **pick("heun", f"{_JCM.format('cd')}, solver", "loss.solver"),
        },
        "FID 3.55, one evaluation; 2.93, two",
        f"{FID} --steps=1",
        against=TRAIN,
    ),
    "consistency:cifar10_ict": Published(
        {
            **pick("score_sde", "jcm: jcm/models/layers.py", "network.initialisation"),
            **pick(0.3, _PAPER, "network.dropout"),
            **pick(0.02, _PAPER, "network.fourier_scale"),
            **pick(400_000, _PAPER, "train.steps"),
            **pick(1024, _PAPER, "data.batch_size"),
            **pick("center", "jcm: jcm/datasets.py, no crop", "data.crop"),
            **pick(True, "jcm: configs/default_cifar10_configs.py, random_flip", "data.flip"),
            **pick("mean", "the distance is of a whole image", "loss.reduction"),
            **pick("radam", _PAPER, "optim.name"),
            **pick(1e-4, _PAPER, "optim.lr"),
            **pick(0, _PAPER, "optim.warmup"),
            **pick(0.0, "jcm: configs/cifar10_ve_cd.py, grad_clip is infinite", "optim.clip"),
            **pick(0.99993, _PAPER, "ema.decay"),
            **pick("doubling", "iCT, section 3.4", "loss.spacing"),
            **pick(10, "iCT, section 3.4", "loss.first"),
            **pick(1280, "iCT, section 3.4", "loss.last"),
            **pick(0.00054, "iCT, section 3.3", "loss.huber"),
            **pick(-1.1, "iCT, section 3.5", "times.mean"),
            **pick(2.0, "iCT, section 3.5", "times.std"),
        },
        "FID 2.83, one evaluation; 2.46, two",
        f"{FID} --steps=1\n{FID} --steps=2",
        ("No code was released; what the paper does not say is that of the first paper's code.",),
        TRAIN,
    ),
    "consistency:cifar10_ect": Published(
        {
            **pick("score_sde", "ect: training/networks.py", "network.initialisation"),
            **pick(0.2, "ect: run_ecm.sh, dropout", "network.dropout"),
            **pick(200_000, "ect: run_ecm.sh, duration over batch", "train.steps"),
            **pick(128, "ect: run_ecm.sh, batch", "data.batch_size"),
            **pick("center", "ect: no crop in training/dataset.py", "data.crop"),
            **pick(False, "ect: ct_train.py, xflip", "data.flip"),
            **pick(0.0, "ect: run_ecm.sh, augment", "data.augment"),
            **pick("mean", "the distance is of a whole image", "loss.reduction"),
            **pick("radam", "ect: run_ecm.sh, optim", "optim.name"),
            **pick(1e-4, "ect: run_ecm.sh, lr", "optim.lr"),
            **pick(0, "ect: no warm-up in training/ct_training_loop.py", "optim.warmup"),
            **pick(0.0, "ect: no clip in training/ct_training_loop.py", "optim.clip"),
            **pick(0.9999, "ect: ct_train.py, ema_beta", "ema.decay"),
            **pick(2.0, "ect: ct_train.py, q", "loss.base"),
            **pick(8.0, "ect: ct_train.py, k", "loss.gain"),
            **pick(1.0, "ect: ct_train.py, b", "loss.slope"),
            **pick(0.0, "ect: ct_train.py, c", "loss.huber"),
            **pick(8, "ect: run_ecm.sh, duration over double and tick", "loss.stages"),
            **pick(-1.1, "ect: ct_train.py, mean", "times.mean"),
            **pick(2.0, "ect: ct_train.py, std", "times.std"),
        },
        "FID 3.60, one evaluation; 2.11, two",
        f"{FID} --steps=1\n{FID} --steps=2",
        (_BASE,),
        TRAIN,
    ),
    "mean_flow:cifar10": Published(
        {
            **pick("score_sde", "meanflow: meanflow/models/unet.py", "network.initialisation"),
            **pick(0.2, "meanflow: meanflow/scripts/cifar10_v0.sh", "network.dropout"),
            **pick(800_000, "meanflow: README.md, Training", "train.steps"),
            **pick(1024, "meanflow: README.md, Training", "data.batch_size"),
            **pick("center", "meanflow: no crop in meanflow/training", "data.crop"),
            **pick(True, "meanflow: meanflow/training/train_loop.py:68", "data.flip"),
            **pick(False, "meanflow: meanflow/training/train_loop.py:68", "data.augment_turns"),
            **pick(256, "meanflow: meanflow/models/unet.py:374", "network.span_dim"),
            **pick(16, "meanflow: meanflow/models/ema.py:13", "ema.every"),
            **pick(0.12, "meanflow: meanflow/training/train_loop.py:68", "data.augment"),
            **pick("mean", "the error is divided by its own power", "loss.reduction"),
            **pick(6e-4, "meanflow: meanflow/scripts/cifar10_v0.sh", "optim.lr"),
            **pick(10_000, "meanflow: meanflow/scripts/cifar10_v0.sh, 200 epochs", "optim.warmup"),
            **pick(0.0, "meanflow: meanflow/training/train_loop.py:165", "optim.lr_start"),
            **pick(0.0, "meanflow: no clip in meanflow/training", "optim.clip"),
            **pick(0.9999, "meanflow: meanflow/train_arg_parser.py, ema_decay", "ema.decay"),
            **pick(0.75, "meanflow: meanflow/scripts/cifar10_v0.sh", "loss.ratio", "loss.power"),
            **pick(1e-3, "meanflow: meanflow/train_arg_parser.py, norm_eps", "loss.floor"),
            **pick(-2.0, "meanflow: meanflow/scripts/cifar10_v0.sh", "times.mean"),
            **pick(2.0, "meanflow: meanflow/scripts/cifar10_v0.sh", "times.std"),
        },
        "FID 2.92, one evaluation",
        f"{FID} --steps=1",
        against=TRAIN,
    ),
}
