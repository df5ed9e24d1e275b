"""EDM2."""

from __future__ import annotations

from configs.published.table import FID, Published, Values, pick

_LOOP, _NET = "edm2: training/training_loop.py", "edm2: training/networks_edm2.py"
# Line of train_edm2.py, learning rate, mebi-images, dropout; FID and the length of its average.
_IMG512 = {
    "xxs": (26, 0.0170, 2048, 0.0, None),
    "xs": (27, 0.0120, 2048, 0.0, ("3.53", "0.135")),
    "s": (28, 0.0100, 2048, 0.0, ("2.56", "0.130")),
    "m": (29, 0.0090, 2048, 0.1, ("2.25", "0.100")),
    "l": (30, 0.0080, 1792, 0.1, ("2.06", "0.085")),
    "xl": (31, 0.0070, 1280, 0.1, ("1.96", "0.085")),
    "xxl": (32, 0.0065, 896, 0.1, ("1.91", "0.070")),
}
_IMG64 = {
    "xs": (33, 0.0120, 1024, 0.0, None),
    "s": (34, 0.0100, 1024, 0.0, ("1.58", "0.075")),
    "m": (35, 0.0090, 2048, 0.1, ("1.43", "0.060")),
    "l": (36, 0.0080, 1024, 0.1, ("1.33", "0.040")),
    "xl": (37, 0.0070, 640, 0.1, ("1.33", "0.040")),
}
_NOT_AS_RELEASED = (
    "Kernels are normalised after a step and not before the next one, so that averages are of "
    "normalised kernels.",
    "The release computes in half precision: --config.network.dtype=bfloat16 is nearest.",
    "A gradient that is not finite stops the run; the release replaces its numbers by 0.",
)


def _train(line: int, rate: float, mebi: int, dropout: float, *, flat: int, times: str) -> Values:
    place = f"edm2: train_edm2.py:{line}"
    mean, std = map(float, times.split())
    return {
        **pick((mebi << 20) // 2048, place, "train.steps"),
        **pick(2048, place, "data.batch_size"),
        **pick(False, "edm2: training/dataset.py:32", "data.flip"),
        **pick("center", "edm2: no crop in training/dataset.py", "data.crop"),
        **pick("halves", "edm2: README.md, center-crop-dhariwal of dataset_tool.py", "data.resize"),
        **pick(
            "ddpm", f"{_NET}:95; the network has no other, and reads no key",
            "network.initialisation",
        ),
        **pick(dropout, place, "network.dropout"),
        **pick("sum", f"{_LOOP}:225", "loss.reduction"),
        **pick(True, f"{_LOOP}:40", "loss.uncertainty"),
        **pick(mean, place, "times.mean"),
        **pick(std, place, "times.std"),
        **pick(rate, place, "optim.lr"),
        **pick("inverse_sqrt", f"{_LOOP}:47", "optim.decay"),
        **pick(flat, place, "optim.decay_steps"),
        **pick(10_000_000 // 2048, f"{_LOOP}:47", "optim.warmup"),
        **pick(0.0, f"{_LOOP}:52", "optim.lr_start"),
        **pick(0.99, f"{_LOOP}:64", "optim.b2"),
        **pick(0.0, f"{_LOOP}: no clipping", "optim.clip"),
        **pick(True, f"{_NET}:97", "optim.unit_kernels"),
        **pick(0.9999, "unused beside the power function", "ema.decay"),
        **pick("power", "edm2: training/phema.py:92", "ema.kind"),
        **pick((0.05, 0.1), "edm2: training/phema.py:92", "ema.lengths"),
        **pick((8 << 20) // 2048, f"{_LOOP}:75", "ema.snapshot_every"),
        **pick(32, "edm2: generate_images.py:77", "sample.steps"),
    }  # fmt: skip


def _describe(
    values: Values, figure: tuple[str, str] | None, differs: tuple[str, ...]
) -> Published:
    if figure is None:
        return Published(values, differs=differs)
    fid, length = figure
    return Published(
        values,
        f"FID {fid} at an average of length {length}, 63 evaluations, the least of several",
        f"{FID} --ema_length={length}",
        differs,
        "50,000 samples, beside the whole training set; the least of several seeds",
    )


_VAE = {
    **pick(0.5, "edm2: training/encoders.py:81", "autoencoder.scale"),
    **pick((5.81, 3.25, 0.12, -2.15), "edm2: training/encoders.py:82", "autoencoder.latents_mean"),
    **pick((4.17, 4.62, 3.71, 3.28), "edm2: training/encoders.py:83", "autoencoder.latents_std"),
}
EDM2 = {
    **{
        f"edm2:img512_{size}": _describe(
            {**_train(*row, flat=70_000, times="-0.4 1.0"), **_VAE}, figure,
            _NOT_AS_RELEASED,
        )
        for size, (*row, figure) in _IMG512.items()
    },
    **{
        f"edm2:img64_{size}": _describe(
            _train(*row, flat=35_000, times="-0.8 1.6"), figure, _NOT_AS_RELEASED
        )
        for size, (*row, figure) in _IMG64.items()
    },
}  # fmt: skip
