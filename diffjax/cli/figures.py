"""What the figures of a run mean, in a line each, and how good its model is, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping

from diffjax.cli.page_parts import Scale

# By the key in metrics.jsonl and evaluation.json.
EXPLANATIONS = {
    # measured of samples
    "distance": "Fréchet distance of samples to real pictures in the features of a small "
    "classifier of ours; 0 is best. It is not FID",
    "inception_score": "how certain and how varied the classifier's guesses are: 1 is worst, the "
    "number of classes is best",
    "inception_score_std": "its standard deviation over ten parts of the samples",
    "precision": "share of samples that lie among the real pictures: quality, 0 to 1",
    "recall": "share of real pictures that lie among the samples: variety, 0 to 1",
    "density": "as precision, but counts how many real pictures a sample lies near; about 1 is "
    "best",
    "coverage": "share of real pictures that have a sample nearby: variety, 0 to 1",
    "class_accuracy": "share of samples in which the classifier sees the class that was asked for",
    "texture_distance": "Fréchet distance in the energies of small fixed filters, in squared grey "
    "levels; it sees noise and blur, which the classifier looks past; 0 is best",
    "texture_features": "the filters, and their version",
    "background_rms": "by how many of 255 grey levels samples miss a background that real pictures "
    "agree on; 0 is best",
    "sampler": "the solver that drew the samples",
    "num": "samples that were measured",
    "num_reference": "real pictures that they were compared with",
    "features": "the classifier, and its version",
    "seed": "of the noise that the samples begin with",
    "sampling_seconds": "time to draw the samples",
    "fid": "Fréchet distance in the features of Inception; 0 is best",
    "kid": "squared distance of the mean features of Inception, unbiased; 0 is best",
    # baselines of the distance
    "real_floor": "distance between two sets of real pictures: no model can be expected to do "
    "better",
    "real_floor_num": "pictures in each of these two sets",
    "matched_gaussian": "distance of pictures with the right mean and covariance of pixels, and "
    "nothing else",
    "untrained_network": "distance of samples that the network drew before training",
    "texture_real_floor": "the texture distance between two sets of real pictures",
    "texture_matched_gaussian": "the texture distance of pictures with the right mean and "
    "covariance of pixels",
    "texture_untrained_network": "the texture distance of samples before training",
    # measured of test pictures
    "bits_per_dim": "bound on the bits that a pixel of a test picture costs; lower is better",
    "bits_per_dim_se": "its standard error",
    "bits_images": "test pictures that were measured",
    "bits_variance": "variance of the reverse steps in this bound",
    "bits_clip": "whether predictions were clipped to the range of pictures for it",
    "rate": "the part of the bound that the reverse steps cost, in bits",
    "distortion_bits": "the part that the last step costs, which leads back to whole grey values",
    "rate_in_last_tenth": "share of the rate in the last tenth of the steps, where details appear",
    "psnr": "peak signal-to-noise ratio of reconstructions, in decibels; higher is better",
    "ssim": "structural similarity of reconstructions to their originals; 1 is best",
    # logged in training
    "step": "steps of training",
    "loss": "mean of the training loss since the last line of the log; it falls quickly, then "
    "slowly, and says little about the quality of pictures",
    "mse": "the part of the loss that is the squared error of the prediction",
    "bound": "the part of the loss that is the variational bound, in bits per dimension",
    "grad_norm": "size of the gradient; jumps are a sign of a learning rate that is too high",
    "lr": "learning rate of the last step",
    "steps_per_second": "speed of training",
    "skipped": "steps whose loss was not finite and which were left out",
}


def explain(figures: Mapping[str, object]) -> dict[str, tuple[object, str | None]]:
    """Put the line that explains it beside each number, text or truth value; others are left out.

    Args:
        figures: by name, as in metrics.jsonl or evaluation.json.
    """
    return {
        name: (value, EXPLANATIONS.get(name))
        for name, value in figures.items()
        if isinstance(value, int | float | str)
    }


def read_scale(evaluation: Mapping[str, object]) -> Scale | None:
    """Read the distance of a model and its baselines; None if one is missing or not positive.

    Args:
        evaluation: the content of evaluation.json.
    """
    baselines = evaluation.get("baselines")
    if not isinstance(baselines, Mapping):
        return None
    found = (
        evaluation.get("distance"), baselines.get("real_floor"), baselines.get("untrained_network")
    )  # fmt: skip
    numbers = [float(v) for v in found if isinstance(v, int | float) and v > 0]
    scale = Scale(*numbers) if len(numbers) == 3 else None
    return scale if scale is not None and scale.real < scale.untrained else None


def describe_quality(scale: Scale) -> str:
    """Say in a sentence how good a model is."""
    ratio = scale.distance / scale.real
    if ratio <= 1:
        return "Its pictures are as close to real ones as real ones are to each other."
    if scale.distance >= scale.untrained:
        return "Its pictures are no closer to real ones than those of an untrained network."
    return (
        f"Its pictures are {ratio:.1f} times as far from real ones as real ones are from each "
        f"other; before training it was {scale.untrained / scale.real:.0f} times."
    )


def describe_sizes(evaluation: Mapping[str, object]) -> str:
    """Say what the distances compare, with a warning if their sets differ in size."""
    baselines = evaluation.get("baselines")
    floor = baselines.get("real_floor_num") if isinstance(baselines, Mapping) else None
    count = evaluation.get("num")
    text = (
        "The bar is logarithmic. It shows Fréchet distances in the features of a small classifier: "
        "they are not FID, and compare only with each other."
    )
    if not floor or not count:
        return text
    if floor == count:
        return f"{text} Every distance is between sets of {count} pictures."
    return (
        f"{text} The model's sets have {count} pictures, and the two sets of real pictures have "
        f"{floor}. Smaller sets give larger distances, so the comparison is only rough."
    )


def describe_training(summary: Mapping[str, object]) -> str:
    """Say in a sentence what was trained, for how long, and on what.

    Args:
        summary: the content of summary.json.
    """
    sessions = summary.get("sessions")
    last: Mapping[str, object] = sessions[-1] if isinstance(sessions, list) and sessions else {}
    devices = [str(name) for name in devices] if (devices := _as_list(summary, "devices")) else []
    machine = str(summary.get("machine", "unknown machine"))
    if set(devices) <= {"cpu"}:
        where = f"{last.get('cpu_cores', 'some')} CPU cores ({machine})"
    else:
        where = f"{len(devices)} x {devices[0]}"
    wall, count = summary.get("wall_seconds"), len(sessions) if isinstance(sessions, list) else 1
    minutes = f"{wall / 60:.1f} minutes" if isinstance(wall, int | float) else "unknown time"
    several = f" in {count} sessions" if count > 1 else ""
    sizes = [
        f"{value:,} {unit}"
        for key, unit in (("steps", "steps"), ("images", "pictures"), ("parameters", "parameters"))
        if isinstance(value := summary.get(key), int)
    ]
    return (
        f"{', '.join(sizes)}: {minutes}{several} on {where}, "
        f"with JAX {summary.get('jax', '?')} and Python {summary.get('python', '?')}."
    )


def _as_list(summary: Mapping[str, object], key: str) -> list[object]:
    value = summary.get(key)
    return value if isinstance(value, list) else []
