"""ControlNet."""

from __future__ import annotations

from configs.published.table import Published, Values, pick

_OURS = "ours: the paper gives hours of GPUs alone"


def _control(*, batch: int, steps: int, lr: float = 1e-5, where: str = _OURS) -> Values:
    return {
        **pick("ddpm", "the base's weights, and zeros: cldm/cldm.py", "network.initialisation"),
        **pick("mean", "ldm: ldm/models/diffusion/ddpm.py:1027", "loss.reduction"),
        **pick(False, "controlnet: tutorial_dataset.py", "data.flip"),
        **pick("center", "controlnet: tutorial_dataset.py", "data.crop"),
        **pick(batch, where, "data.batch_size"),
        **pick(steps, where, "train.steps"),
        **pick(lr, "controlnet: tutorial_train.py:14", "optim.lr"),
        **pick(0.01, "controlnet: cldm/cldm.py:422, PyTorch's default", "optim.weight_decay"),
        **pick(0, "controlnet: no warm-up in cldm/cldm.py:422", "optim.warmup"),
        **pick(0.0, "controlnet: no clip in tutorial_train.py", "optim.clip"),
        **pick(0.0, "controlnet: no average in models/cldm_v15.yaml", "ema.decay"),
        **pick(0.5, "paper, section 3.4", "cond.drop"),
    }


_CANNY = {
    **pick(100 / 2040, "controlnet: gradio_canny2image.py:82", "control.hint.low"),
    **pick(200 / 2040, "controlnet: gradio_canny2image.py:83", "control.hint.high"),
    **pick(0.0, "controlnet: annotator/canny/__init__.py", "control.hint.sigma"),
    **pick("l1", "controlnet: annotator/canny/__init__.py, OpenCV's default", "control.hint.norm"),
}
_DRAWN = "The paper draws thresholds at random for training; these are those of its demonstration."
_NO_DATA = "Its training data were not released, and there is no figure for this model."
_XL = "No paper or release by the authors: ControlNet's recipe for XL."
_T2I = "T2I-Adapter's code is not among the releases above; the paper gives these."
CONTROL = {
    "controlnet:sd15_canny": Published(
        {**_control(batch=32, steps=8000), **_CANNY}, differs=(_NO_DATA, _DRAWN)
    ),
    "controlnet:sd15_canny_unlocked": Published(
        {
            **_control(batch=32, steps=8000),
            **_CANNY,
            **pick(2e-6, "controlnet: docs/train.md:260, for all of it", "optim.lr"),
        },
        differs=(_NO_DATA, _DRAWN),
    ),
    "controlnet:sd15_seg": Published(
        _control(batch=32, steps=40_000),
        "IoU 0.35 of ADE20K's segmentation; FID 15.27, CLIP score 0.26, aesthetic 6.31. Beside it: "
        "FID 17.92 of ControlNet-lite, 19.74 of PITI (PIPT), 6.09 of Stable Diffusion alone; users "
        "rank quality 4.22 ± 0.43 and fidelity 4.28 ± 0.45 (ControlNet-lite: 3.93 ± 0.59, 4.09 ± "
        "0.46)",
        differs=(_NO_DATA,),
    ),
    "controlnet:sd21_canny": Published(
        {**_control(batch=32, steps=8000), **_CANNY}, differs=(_NO_DATA, _DRAWN)
    ),
    "controlnet:sdxl_canny": Published(
        {**_control(batch=64, steps=20_000, where=_OURS), **_CANNY}, differs=(_XL,)
    ),
    "controlnet:sd15_canny_adapter": Published(
        {
            **_control(batch=8, steps=8000, where="T2I-Adapter, section 4.1, and steps of ours"),
            **_CANNY,
        },
        differs=(_T2I,),
    ),
    "controlnet:sdxl_canny_adapter": Published(
        {**_control(batch=64, steps=20_000, where=_OURS), **_CANNY}, differs=(_XL,)
    ),
}
