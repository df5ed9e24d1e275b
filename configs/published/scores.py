"""EDM, score-SDE, NCSN and rectified flow."""

from __future__ import annotations

from configs.published.table import BOUNDS, FID, ODE_BITS, TRAIN, Published, Values, pick

_EDM = {
    **pick("sum", "edm: training/training_loop.py:132", "loss.reduction"),
    **pick("center", "edm: no crop in training/dataset.py", "data.crop"),
    **pick(0.0, "edm: training/training_loop.py:136", "optim.lr_start"),
    **pick(0.0, "edm: no clip in training/training_loop.py", "optim.clip"),
    **pick(0.9999, "unused beside the half-life", "ema.decay"),
}
_EDM_CIFAR = {
    **_EDM,
    **pick("score_sde", "edm: training/networks.py:259", "network.initialisation"),
    **pick(200_000_000 // 512, "edm: train.py:51", "train.steps"),
    **pick(512, "edm: train.py:52", "data.batch_size"),
    **pick(1e-3, "edm: train.py:56", "optim.lr"),
    **pick(500_000, "edm: train.py:57", "ema.half_life"),
    **pick(0.12, "edm: train.py:59", "data.augment"),
    **pick(True, "edm: train.py:145, by the augmentation", "data.flip"),
    **pick(10_000_000 // 512, "edm: training/training_loop.py:39", "optim.warmup"),
    **pick(18, "edm: README.md:92", "sample.steps"),
}
_K_VE = "jcm: configs/cifar10_k_ve.py"
_THREE = f"{TRAIN}; the least of three seeds, --seed=0, 1 and 2"
_SDE = {
    **pick("score_sde", "sde: models/layers.py:62 and 469", "network.initialisation"),
    **pick("center", "sde: datasets.py, which crops CelebA alone", "data.crop"),
    **pick(True, "sde: configs/default_cifar10_configs.py:44", "data.flip"),
    **pick(128, "sde: configs/default_cifar10_configs.py:8", "data.batch_size"),
    **pick(2e-4, "sde: configs/default_cifar10_configs.py:63", "optim.lr"),
    **pick(5000, "sde: configs/default_cifar10_configs.py:66", "optim.warmup"),
    **pick(0.0, "sde: losses.py:50", "optim.lr_start"),
    **pick(1.0, "sde: configs/default_cifar10_configs.py:67", "optim.clip"),
    **pick(1_300_001, "sde: configs/default_cifar10_configs.py:9", "train.steps"),
}
_VE = {
    **_SDE,
    **pick("half_sum", "sde: losses.py:82", "loss.reduction"),
    **pick(0.999, "sde: configs/ve/cifar10_ncsnpp_continuous.py:38", "ema.decay"),
    **pick("pc", "sde: configs/ve/cifar10_ncsnpp_continuous.py:31", "sample.sampler"),
    **pick("batch", "sde: sampling.py:287", "sample.norm"),
    **pick(1e-5, "sde: run_lib.py:111", "sample.t_end"),
    **pick(1e-5, "sde: losses.py:65", "schedule.t_min"),
}


def _vp(folder: str) -> Values:
    place = f"sde: configs/{folder}/cifar10_ddpmpp_continuous.py"
    return {
        **_SDE,
        **pick("mean", f"{place}:28", "loss.reduction"),
        **pick(0.9999, f"{place}:44", "ema.decay"),
        **pick("euler_maruyama", f"{place}:33", "sample.sampler"),
        **pick(1e-3, "sde: run_lib.py:105", "sample.t_end"),
    }


_DEEP = (950_001, "sde: configs/ve/cifar10_ncsnpp_deep_continuous.py:28")
_SUB_DEEP = (950_001, "sde: configs/subvp/cifar10_ddpmpp_deep_continuous.py:29")
_BEST = "FID is that of the best of the checkpoints, one every 50,000 steps."
_NCSN = {
    **pick("refinenet", "ncsn: models/cond_refinenet_dilated.py:336", "network.name"),
    **pick(128, "ncsn: configs/anneal.yml:37", "network.channels"),
    **pick(True, "ncsn: models/cond_refinenet_dilated.py:341", "network.level_norms"),
    **pick("torch", "ncsn: PyTorch's default in models", "network.initialisation"),
    **pick("score", "ncsn: losses/dsm.py:36", "parameterization.name"),
    **pick(2.0, "ncsn: pixels in [0, 1]", "parameterization.score_scale"),
    **pick("half_sum", "ncsn: losses/dsm.py:36", "loss.reduction"),
    **pick("center", "ncsn: runners/anneal_runner.py:61", "data.crop"),
    **pick(True, "ncsn: configs/anneal.yml:29", "data.flip"),
    **pick(128, "ncsn: configs/anneal.yml:2", "data.batch_size"),
    **pick(200_001, "ncsn: configs/anneal.yml:4", "train.steps"),
    **pick(1e-3, "ncsn: configs/anneal.yml:44", "optim.lr"),
    **pick(0, "ncsn: no warm-up in runners/anneal_runner.py", "optim.warmup"),
    **pick(0.0, "ncsn: no clip in runners/anneal_runner.py", "optim.clip"),
    **pick(0.0, "ncsn: no average in runners/anneal_runner.py", "ema.decay"),
    **pick(True, "ncsn: runners/anneal_runner.py:136", "data.dequantize"),
    **pick("released", "ncsn: runners/anneal_runner.py:213", "sample.rule"),
    **pick("uniform", "ncsn: runners/anneal_runner.py:260", "sample.start"),
    **pick(8e-5, "ncsn: runners/anneal_runner.py:203, times 4", "sample.step_size"),
}
_NCSN_FACES = {
    **_NCSN,
    **pick((39, 19, 140, 140), "ncsn: runners/anneal_runner.py:75", "data.window"),
    **pick(32, "ncsn: configs/anneal.yml:19", "data.image_size"),
}
_NCSN_DIGITS = {
    **_NCSN,
    **pick(64, "ncsn: configs/anneal.yml:39", "network.channels"),
    **pick(28, "ncsn: configs/anneal.yml:13", "data.image_size"),
    **pick(False, "ncsn: configs/anneal.yml:16", "data.flip"),
}
_NCSN2 = {
    **{k: v for k, v in _NCSN.items() if k != "parameterization.score_scale"},
    **pick("refinenet", "ncsnv2: models/ncsnv2.py:11", "network.name"),
    **pick(128, "ncsnv2: configs/cifar10.yml:60", "network.channels"),
    **pick(False, "ncsnv2: models/ncsnv2.py:16", "network.level_norms"),
    **pick("torch", "ncsnv2: PyTorch's default in models", "network.initialisation"),
    **pick("eps", "ncsnv2: models/ncsnv2.py:99, of the other sign", "parameterization.name"),
    **pick("half_sum", "ncsnv2: losses/dsm.py:13", "loss.reduction"),
    **pick("center", "ncsnv2: datasets/__init__.py", "data.crop"),
    **pick(True, "ncsnv2: configs/cifar10.yml:46", "data.flip"),
    **pick(128, "ncsnv2: configs/cifar10.yml:2", "data.batch_size"),
    **pick(300_001, "ncsnv2: configs/cifar10.yml:4", "train.steps"),
    **pick(1e-4, "ncsnv2: configs/cifar10.yml, optim", "optim.lr"),
    **pick(0, "ncsnv2: no warm-up in runners/ncsn_runner.py", "optim.warmup"),
    **pick(0.0, "ncsnv2: no clip in runners/ncsn_runner.py", "optim.clip"),
    **pick(0.999, "ncsnv2: configs/cifar10.yml:54", "ema.decay"),
    **pick(False, "ncsnv2: configs/cifar10.yml:44", "data.dequantize"),
    **pick("released", "ncsnv2: models/__init__.py:35", "sample.rule"),
    **pick("uniform", "ncsnv2: runners/ncsn_runner.py:188", "sample.start"),
    **pick(4 * 6.2e-6, "ncsnv2: configs/cifar10.yml:13, times 4", "sample.step_size"),
}
_FLOW = "flow: ImageGeneration/configs/default_cifar10_configs.py"
_FLOW_TIMES = "flow: ImageGeneration/losses.py:101, counted from noise"
_FLOW_TOLD = "flow: ImageGeneration/losses.py:108"
_FLOW_OWN = "flow: ImageGeneration/configs/rectified_flow/cifar10_rf_gaussian_ddpmpp.py"
SCORES = {
    "edm:cifar10": Published(
        _EDM_CIFAR, "FID 1.97, 35 evaluations, the least of three", FID, against=_THREE
    ),
    "edm:cifar10_cond": Published(
        {
            **_EDM_CIFAR,
            **pick("before", "edm: training/networks.py:270", "network.class_embedding"),
        },
        "FID 1.79, 35 evaluations, the least of three. The release's network has 55,735,299 "
        "parameters, and so has ours: 10 x 128 weights and 128 biases are of the classes, and a "
        "count of 55,735,171 leaves these biases out",
        FID,
        against=_THREE,
    ),
    "edm:cifar10_ncsnpp": Published(
        {
            **pick("score_sde", "jcm: jcm/models/layers.py", "network.initialisation"),
            **pick(0.13, f"{_K_VE}, dropout", "network.dropout"),
            **pick(400_001, f"{_K_VE}, n_iters", "train.steps"),
            **pick(512, f"{_K_VE}, batch_size", "data.batch_size"),
            **pick("center", "jcm: jcm/datasets.py, no crop", "data.crop"),
            **pick(True, "jcm: configs/default_cifar10_configs.py, random_flip", "data.flip"),
            **pick(0.0, "jcm: jcm/datasets.py, no augmentation", "data.augment"),
            **pick("sum", "jcm: jcm/losses.py:728", "loss.reduction"),
            **pick(1e-3, f"{_K_VE}, lr", "optim.lr"),
            **pick(10_000_000 // 512, f"{_K_VE}, warmup", "optim.warmup"),
            **pick(0.0, f"{_K_VE}, grad_clip is infinite", "optim.clip"),
            **pick(0.5 ** (512 / 500_000), f"{_K_VE}, ema_rate", "ema.decay"),
            **pick(18, f"{_K_VE}, num_scales", "sample.steps"),
        },
        "none of its own: it is the base of consistency:cifar10_cd",
    ),
    "edm:imagenet64": Published(
        {
            **_EDM,
            **pick("adm", "edm: training/networks.py:391", "network.initialisation"),
            **pick(2_500_000_000 // 4096, "edm: README.md:212", "train.steps"),
            **pick(4096, "edm: README.md:212", "data.batch_size"),
            **pick(1e-4, "edm: README.md:212", "optim.lr"),
            **pick(50_000_000, "edm: README.md:212", "ema.half_life"),
            **pick(False, "edm: train.py:60", "data.flip"),
            **pick(10_000_000 // 4096, "edm: training/training_loop.py:39", "optim.warmup"),
            **pick(256, "edm: README.md:100", "sample.steps"),
            **pick("lanczos", "edm: dataset_tool.py:223", "data.resize"),
        },
        "FID 1.36, 511 evaluations, the least of three",
        FID,
        ("The release computes in half precision: --config.network.dtype=bfloat16 is nearest.",),
        _THREE,
    ),
    "score_sde:ncsnpp_ve": Published(_VE, "FID 2.38, IS 9.83", FID, (_BEST,), TRAIN),
    "score_sde:ncsnpp_ve_deep": Published(
        {**_VE, "train.steps": _DEEP}, "FID 2.20, IS 9.89", FID, (_BEST,), TRAIN
    ),
    "score_sde:ddpmpp_vp": Published(
        _vp("vp"),
        "FID 2.55, IS 9.58; 3.16 bits/dim of the last checkpoint",
        ODE_BITS,
        (_BEST,),
        BOUNDS,
    ),
    "score_sde:ddpmpp_subvp": Published(
        _vp("subvp"),
        "FID 2.61, IS 9.56; 3.02 bits/dim of the last checkpoint",
        ODE_BITS,
        (_BEST,),
        BOUNDS,
    ),
    "score_sde:ddpmpp_subvp_deep": Published(
        {**_vp("subvp"), "train.steps": _SUB_DEEP},
        "FID 2.41, IS 9.57; 2.99 bits/dim of the last checkpoint",
        ODE_BITS,
        (_BEST,),
        BOUNDS,
    ),
    "smld:ncsn": Published(_NCSN, "FID 25.32, IS 8.87", FID, against=TRAIN),
    "smld:ncsn_celeba": Published(_NCSN_FACES, "pictures alone"),
    "smld:ncsn_mnist": Published(_NCSN_DIGITS, "pictures alone"),
    "smld:ncsn_printed": Published(
        {**_NCSN, **pick("printed", "paper, algorithm 1", "sample.rule")},
        differs=("The printed step is half of what made the figures of ncsn.",),
    ),
    "smld:ncsnv2": Published(_NCSN2, "FID 10.87, IS 8.40", FID, against=TRAIN),
    "flow:cifar10": Published(
        {
            **pick("score_sde", "flow: ImageGeneration/models", "network.initialisation"),
            **pick("mean", f"{_FLOW_OWN}:29", "loss.reduction"),
            **pick("center", "flow: ImageGeneration/datasets.py", "data.crop"),
            **pick(True, f"{_FLOW}:50", "data.flip"),
            **pick(128, f"{_FLOW}:9", "data.batch_size"),
            **pick(1_300_001, f"{_FLOW}:10", "train.steps"),
            **pick(2e-4, f"{_FLOW}:69", "optim.lr"),
            **pick(5000, f"{_FLOW}:72", "optim.warmup"),
            **pick(1.0, f"{_FLOW}:73", "optim.clip"),
            **pick(0.999999, f"{_FLOW_OWN}:47", "ema.decay"),
            **pick(0.0, _FLOW_TIMES, "schedule.t_min"),
            **pick(0.999, _FLOW_TIMES, "schedule.t_max"),
            **pick(-999.0, f"{_FLOW_TOLD}, time runs to the data", "network.time_scale"),
            **pick(999.0, f"{_FLOW_TOLD}, time runs to the data", "network.time_shift"),
            **pick("rk45", f"{_FLOW_OWN}:36", "sample.sampler"),
            **pick(1e-5, f"{_FLOW_OWN}:37", "sample.rtol", "sample.atol"),
        },
        "FID 2.58, 127 evaluations",
        FID,
        ("Every image takes steps of its own in RK45; the release steps a batch at once.",),
        TRAIN,
    ),
}
