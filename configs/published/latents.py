"""Latent diffusion."""

from __future__ import annotations

from typing import Any

from configs.published.table import FID, TRAIN, Published, Values, pick, virtual

_ZOO = "ldm: models/first_stage_models"
_FIRST_STAGE = {
    **pick("torch", "ldm: PyTorch's default in ldm/modules", "network.initialisation"),
    **pick(False, "ldm: FullOpenImagesTrain in the model zoo's configs names no flip", "data.flip"),
    **pick(0, "ldm: no warm-up in ldm/models/autoencoder.py:392", "optim.warmup"),
    **pick(0.0, "ldm: no clip in ldm/models/autoencoder.py:392", "optim.clip"),
    **pick(0.0, "ldm: no average in ldm/models/autoencoder.py", "ema.decay"),
    **pick(0.5, "ldm: ldm/models/autoencoder.py:392", "optim.b1"),
    **pick(0.9, "ldm: ldm/models/autoencoder.py:392", "optim.b2"),
}
_VQ = {
    **pick(0.25, "taming: taming/modules/vqvae/quantize.py:294", "loss.codebook_weight"),
    **pick(1.0, "taming: taming/modules/vqvae/quantize.py:294", "loss.commitment_weight"),
    **pick(0.0, "taming: no such pull in taming/modules/vqvae/quantize.py", "loss.dead"),
}


def _stage(
    folder: str,
    number: str,
    *,
    batch: tuple[int, int],
    crop: int,
    start: tuple[int, int],
    zoo: int,
    steps: int,
    codebook: bool = False,
) -> Published:
    """A row of the model zoo; pairs are (value, line of its config)."""
    place = f"{_ZOO}/{folder}/config.yaml"
    values = {
        **_FIRST_STAGE,
        **(_VQ if codebook else {}),
        **pick(batch[0], f"{place}:{batch[1]}", "data.batch_size"),
        **pick(4.5e-6 * batch[0], f"{place}:2, times the batch", "optim.lr"),
        **pick("random", f"{place}:{crop}", "data.crop"),
        **pick((256 / 384, 256 / 384), f"{place}:{crop}", "data.crop_share"),
        **pick(start[0], f"{place}:{start[1]}", "loss.disc_start"),
        **pick(steps, f"ldm: README.md:{zoo}", "train.steps"),
    }
    together = "Both players are updated at once; the release updates the discriminator after."
    measure = "--metrics=rfid,psnr --num=50000 --config.data.dir=IMAGENET"
    return Published(values, number, measure, (together, _NORMS), _VALIDATION)


_VALIDATION = (
    "reconstructions of ImageNet's 50,000 validation pictures, which IMAGENET has in a folder "
    "test, beside the pictures"
)
_NORMS = (
    "Biases of the discriminator begin at 0. The class of the data is not in the release; we take "
    "crops at random."
)
_DIFFUSION = {
    **pick("adm", "ldm: ldm/modules/diffusionmodules/openaimodel.py:229", "network.initialisation"),
    **pick("mean", "ldm: ldm/models/diffusion/ddpm.py:1027", "loss.reduction"),
    **pick(0, "ldm: no scheduler_config", "optim.warmup"),
    **pick(0.0, "ldm: no clip in ldm/models/diffusion/ddpm.py", "optim.clip"),
    **pick(0.9999, "ldm: ldm/models/diffusion/ddpm.py:90", "ema.decay"),
    **pick("center", "ldm: the class of the data", "data.crop"),
    **pick("strided", "ldm: ldm/modules/diffusionmodules/util.py:49", "sample.grid"),
    **pick(1, "ldm: ldm/modules/diffusionmodules/util.py:57", "sample.offset"),
    **pick("first", "ldm: ldm/modules/diffusionmodules/util.py:57", "sample.final"),
}


def _latent(
    folder: str, *, batch: tuple[int, int], lr: float, steps: int, flip: Any, **more: Any
) -> Values:
    place = f"ldm: models/ldm/{folder}/config.yaml"
    return {
        **_DIFFUSION,
        **pick(batch[0], f"{place}:{batch[1]}", "data.batch_size"),
        **pick(lr, f"{place}:2, times the batch", "optim.lr"),
        **pick(steps, "paper, appendix E (hyperparameters)", "train.steps"),
        "data.flip": flip,
        **{key.replace("__", "."): value for key, value in more.items()},
    }


_FACES = (False, "taming: no flip in taming/data/faceshq.py")
_FILL = "ldm: models/ldm/inpainting_big/config.yaml"
_LSUN = (True, "ldm: ldm/data/lsun.py:15")
_IMAGENET = (False, "ldm: no flip in ldm/data/imagenet.py")
_UNNAMED = (False, "ldm: the config names no data")
_RANDOM = ("random", "ldm: ldm/data/imagenet.py:160")
_UNET = "ldm: ldm/modules/diffusionmodules/openaimodel.py"
_JUDGE = "ldm: ldm/models/diffusion/classifier.py"
_AS_ADM = "ours, as ADM's classifier of 256 pixels: neither paper nor release gives it"
_CHURCH = (5e-5, "ldm: models/ldm/lsun_churches256/config.yaml:2, not scaled")
LATENT = {
    "autoencoder:kl_f4": _stage(
        "kl-f4",
        "rFID 0.27, PSNR 27.53",
        batch=(10, 30),
        crop=36,
        start=(50_001, 10),
        zoo=279,
        steps=176_991,
    ),
    "autoencoder:kl_f8": _stage(
        "kl-f8",
        "rFID 0.90, PSNR 24.19",
        batch=(4, 31),
        crop=37,
        start=(50_001, 10),
        zoo=280,
        steps=246_803,
    ),
    "autoencoder:kl_f16": _stage(
        "kl-f16",
        "rFID 0.87, PSNR 24.08",
        batch=(6, 33),
        crop=39,
        start=(50_001, 10),
        zoo=281,
        steps=442_998,
    ),
    "autoencoder:kl_f32": _stage(
        "kl-f32",
        "rFID 2.04, PSNR 22.27",
        batch=(6, 35),
        crop=41,
        start=(50_001, 10),
        zoo=282,
        steps=406_763,
    ),
    "autoencoder:vq_f4": _stage(
        "vq-f4",
        "rFID 0.58, PSNR 27.43",
        batch=(8, 35),
        crop=41,
        start=(0, 28),
        zoo=273,
        steps=533_066,
        codebook=True,
    ),
    "autoencoder:vq_f4_noattn": _stage(
        "vq-f4-noattn",
        "rFID 1.06, PSNR 25.21",
        batch=(8, 36),
        crop=42,
        start=(11, 29),
        zoo=274,
        steps=658_131,
        codebook=True,
    ),
    "autoencoder:vq_f8": _stage(
        "vq-f8",
        "rFID 1.14, PSNR 23.07",
        batch=(10, 36),
        crop=43,
        start=(1, 30),
        zoo=275,
        steps=971_043,
        codebook=True,
    ),
    "autoencoder:vq_f16": _stage(
        "vq-f16",
        "rFID 5.15, PSNR 20.83",
        batch=(14, 37),
        crop=44,
        start=(250_001, 29),
        zoo=277,
        steps=1_101_166,
        codebook=True,
    ),
    "ldm:celebahq": Published(
        _latent(
            "celeba256",
            batch=(48, 60),
            lr=9.6e-5,
            steps=410_000,
            flip=_FACES,
            sample__eta=(0.0, "ldm: README.md:298"),
            sample__steps=(200, "ldm: README.md:298"),
        ),
        "FID 5.11, precision 0.72, recall 0.49",
        "--metrics=fid,prdc --num=50000",
        against=TRAIN,
    ),
    "ldm:ffhq": Published(
        _latent(
            "ffhq256",
            batch=(42, 60),
            lr=8.4e-5,
            steps=635_000,
            flip=_FACES,
            sample__eta=(1.0, "ldm: README.md:299"),
            sample__steps=(200, "ldm: README.md:299"),
        ),
        "FID 4.98, precision 0.73, recall 0.50",
        "--metrics=fid,prdc --num=50000",
        against=TRAIN,
    ),
    "ldm:lsun_churches": Published(
        _latent(
            "lsun_churches256",
            batch=(96, 82),
            lr=5e-5,
            steps=500_000,
            flip=_LSUN,
            optim__lr=_CHURCH,
            optim__warmup=(10_000, "ldm: models/ldm/lsun_churches256/config.yaml:22"),
            optim__lr_start=(1e-6, "ldm: models/ldm/lsun_churches256/config.yaml, f_start"),
            sample__eta=(0.0, "ldm: README.md:300"),
            sample__steps=(400, "ldm: README.md:300"),
        ),
        "FID 4.02, precision 0.64, recall 0.52",
        "--metrics=fid,prdc --num=50000",
        ("400 steps are 500 evaluations, since 1000 // 400 is 2, in the release too.",),
        TRAIN,
    ),
    "ldm:lsun_beds": Published(
        _latent(
            "lsun_beds256",
            batch=(48, 60),
            lr=9.6e-5,
            steps=1_900_000,
            flip=_LSUN,
            sample__eta=(1.0, "ldm: README.md:301"),
            sample__steps=(200, "ldm: README.md:301"),
        ),
        "FID 2.95, precision 0.66, recall 0.48",
        "--metrics=fid,prdc --num=50000",
        against=TRAIN,
    ),
    "ldm:cin256": Published(
        {
            **_latent(
                "cin256",
                batch=(1200, 68),
                lr=1e-4,
                steps=178_000,
                flip=_IMAGENET,
                data__crop=_RANDOM,
                sample__steps=(250, "paper, table 3"),
                sample__guidance=(1.5, "paper, table 3"),
            ),
            **pick(1200, "paper, appendix E (hyperparameters)", "data.batch_size"),
            **pick(1e-4, "ldm: configs/latent-diffusion/cin256-v2.yaml:2", "optim.lr"),
        },
        "FID 10.56, IS 103.49; guided with 1.5: FID 3.60, IS 247.67",
        f"{FID}\n{FID} --guidance=1",
        ("Labels are dropped with probability 0.1, which the paper does not give.",),
        virtual("imagenet256_labeled"),
    ),
    "ldm:cin_vq8": Published(
        _latent(
            "cin256",
            batch=(64, 68),
            lr=6.4e-5,
            steps=2_900_000,
            flip=_IMAGENET,
            data__crop=_RANDOM,
            cond__drop=(0.0, "ldm: models/ldm/cin256/config.yaml, no dropping"),
            sample__steps=(200, "ldm: README.md:302"),
            sample__guidance=(1.0, "ldm: README.md:302"),
        ),
        "FID 15.82, IS 78.82; with a classifier of scale 10: FID 7.77, IS 201.56",
        f"{FID}\n{FID} --config.sample.classifier=cin_vq8_classifier.safetensors --guidance=10",
        against=virtual("imagenet256_labeled"),
    ),
    "ldm:cin_vq8_classifier": Published(
        {
            **pick("adm", f"{_UNET}:229", "network.initialisation"),
            **pick("direct", f"{_UNET}:32", "network.head"),
            **pick("mean", f"{_JUDGE}:191, which has no pixels to sum", "loss.reduction"),
            **pick("adamw", f"{_JUDGE}:221", "optim.name"),
            **pick(0.01, f"{_JUDGE}:38", "optim.weight_decay"),
            **pick(0, f"{_JUDGE}:223, no scheduler by default", "optim.warmup"),
            **pick(0.0, f"{_JUDGE}, no clip", "optim.clip"),
            **pick(0.0, f"{_JUDGE}, no average", "ema.decay"),
            **pick("random", "ldm: ldm/data/imagenet.py:160", "data.crop"),
            **pick(False, "ldm: no flip in ldm/data/imagenet.py", "data.flip"),
            **pick(256, _AS_ADM, "data.batch_size"),
            **pick(3e-4, _AS_ADM, "optim.lr"),
            **pick(500_000, _AS_ADM, "train.steps"),
        },
        differs=(
            "Neither paper nor release gives rate, batch or number of steps; these are of ADM.",
        ),
    ),
    "ldm:text2img": Published(
        {
            **_latent(
                "text2img256",
                batch=(680, 0),
                lr=1e-4,
                steps=390_000,
                flip=_UNNAMED,
                sample__steps=(250, "paper, table 2"),
                sample__guidance=(1.5, "paper, table 2"),
            ),
            **pick(680, "paper, appendix E (hyperparameters)", "data.batch_size"),
            **pick(1e-4, "paper, appendix E (hyperparameters)", "optim.lr"),
        },
        "COCO FID 23.31, guided with 1.5: 12.63",
        "--metrics=fid,is --num=30000 --reference=COCO\n"
        "--metrics=fid,is --num=30000 --reference=COCO --guidance=1",
        ("The data, LAION-400M, come as latents; captions are dropped with probability 0.1.",),
        "30,000 samples of captions of MS-COCO's validation set, beside its pictures in COCO",
    ),
    "ldm:inpainting": Published(
        {
            **_latent("inpainting_big", batch=(128, 0), lr=1.28e-5, steps=360_000, flip=_UNNAMED),
            **pick(128, "paper, appendix E (hyperparameters)", "data.batch_size"),
            **pick(1.28e-5, f"{_FILL}:2 and 24", "optim.lr"),
            **pick(1000, f"{_FILL}:20", "optim.warmup"),
            **pick(50_000, f"{_FILL}:21", "optim.decay_steps"),
            **pick(0.01, f"{_FILL}:22, over lr_max", "optim.lr_start"),
            **pick(0.001, f"{_FILL}:24, over lr_max", "optim.lr_end"),
            **pick("cosine", f"{_FILL}:18", "optim.decay"),
        },
        differs=("The holes are ours: the release names no data.",),
    ),
    "ldm:superres": Published(
        {
            **_latent(
                "bsr_sr",
                batch=(64, 60),
                lr=6.4e-5,
                steps=800_000,
                flip=_UNNAMED,
                data__crop=("random", "ldm: models/ldm/bsr_sr/config.yaml:71"),
                data__crop_share=((0.5, 1.0), "ldm: models/ldm/bsr_sr/config.yaml:69"),
                data__resize=("area", "ldm: ldm/data/imagenet.py:302"),
                data__degradation=("bsrgan_light", "ldm: models/ldm/bsr_sr/config.yaml:67"),
            ),
            **pick(800_000, "ours: neither paper nor release gives a number", "train.steps"),
        },
        differs=("Blurs of almost no width keep the picture; the release may turn it black.",),
    ),
}
