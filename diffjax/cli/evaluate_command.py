"""Measure a checkpoint: distance to real images, scores, bits/dim; or sweep samplers over it.

    diffjax evaluate --workdir=runs/digits
    diffjax evaluate --workdir=runs/digits --images=some/samples.npz
    diffjax evaluate --workdir=runs/digits --metrics=fid,is,kid,prdc --num=50000 \\
        --inception=pt_inception-2015-12-05-6726825d.pth --allow_legacy_pickle
    diffjax evaluate --images=FOLDER --reference=stats.npz --metrics=fid \\
        --workdir=runs/measured --inception=...
    diffjax evaluate --workdir=runs/digits --sweep=sampler=ddim --sweep=eta=0,0.5,1 \\
        --sweep=steps=5,10,20,50 --seeds=3 --name=ddim

Distances are Frechet distances on the features of a small frozen classifier of ours, never FID.
fid, sfid, is, kid, prdc (precision, recall, density, coverage) and rfid need Inception's weights;
psnr, ssim and rfid compare --images with their originals, --reference. An evaluation with Inception
that was interrupted goes on where it stopped. An autoencoder is measured by its reconstructions of
test images, which --save_reconstructions writes.
Writes evaluation.json (or --out), beside it a picture of an autoencoder's reconstructions, and for
sweeps sweeps/NAME.jsonl, .md and .png in the workdir (of captions with --metrics=captions); a sweep
that was interrupted goes on where it stopped, and one of other settings needs another --name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from diffjax import evaluation, metrics
from diffjax.cli import evaluate_flags, run_flags
from diffjax.cli.command_line import UsageError, name_keys
from diffjax.cli.evaluate_flags import (
    FROM_DATA,
    REFERENCE,
    SAVE_RECONSTRUCTIONS,
    close_inputs,
    find_output_path,
    load_network,
    open_inputs,
    read_reference,
    select,
)
from diffjax.evaluation import METRICS
from diffjax.evaluation.image_grids import save_png
from diffjax.evaluation.metric_table import find_metrics_of
from diffjax.runs import first_stage, measuring, real_images
from diffjax.tasks import find_task_kind
from diffjax.writing import write_json

# Flags in the order of the help, see `help_pages`.
FLAG_GROUPS = {
    "Evaluation": (
        "workdir",
        "metrics",
        "num",
        "out",
        "best",
        "raw",
        "ema_length",
        "weights",
        "seed",
    ),
    "Other images": ("images", "reference", "reference_num", "save_reference"),
    "Networks": ("inception", "allow_legacy_pickle", "resize", "clip", "prompts", "lpips"),
    "Sweeps": ("sweep", "name", "seeds"),
    "Sampling": ("sampler", "steps", "guidance", "grid", "eta", "variance"),
    "More": ("pairs", "bits_steps", "save_reconstructions", "config"),
}
# Flags of other modules that this command uses.
USES = (
    "config",
    "workdir",
    "weights",
    "best",
    "raw",
    "ema_length",
    "sampling",
    *evaluate_flags.OWN,
)


def main() -> None:
    """Evaluate what the flags name: a run, images in files, or a sweep over samplers."""
    names, folder = evaluate_flags.read_names(), run_flags.read_workdir()
    if evaluate_flags.SAVE_REFERENCE.value:
        save_reference(folder, Path(evaluate_flags.SAVE_REFERENCE.value))
    elif evaluate_flags.IMAGES.value:
        # The model is not asked: only the images count.
        _finish(measure_images(folder, names), folder)
    elif evaluate_flags.SWEEP.value:
        sweep(folder, names)
    else:
        _finish(measure_model(folder, names), folder)


def save_reference(folder: Path, out: Path) -> None:
    """Write the statistics of the reference images to an npz, spatial features included.

    Args:
        folder: workdir, where features are kept while they are computed.
        out: the npz.

    Raises:
        UsageError: --reference holds statistics already.
    """
    reference = read_reference(evaluate_flags.read_config(["fid"]))
    if reference.images is None or reference.statistics is not None:
        raise UsageError(f"{REFERENCE.value} holds statistics already")
    store = evaluate_flags.open_store(folder, spatial=True)
    metrics.save_statistics(out, store.summarize(reference.images))
    store.clear()
    logging.info("statistics of %d images written to %s", reference.images.num, out)


def measure_images(folder: Path, names: list[str]) -> dict[str, Any]:
    """Measure the images of --images, against the config's data or --reference.

    Args:
        folder: workdir, where features are kept while they are computed.
        names: of metrics.

    Returns:
        Numbers and tables by name.

    Raises:
        UsageError: metrics of a model are asked for, or a reference that would not be used, or
            --reference is missing.
    """
    # These metrics need a config and its data.
    ours = select(names, FROM_DATA | evaluate_flags.FROM_MODEL)
    if models := select(names, evaluate_flags.FROM_MODEL):
        if flags.FLAGS["metrics"].present:
            raise UsageError(f"{', '.join(models)} are of a model, not of --images")
        names = [name for name in names if name not in models]
    if ours and REFERENCE.value and not set(names) - set(ours):
        theirs = find_metrics_of(["reference", "originals"])
        raise UsageError(
            "the distance is to the config's training images; --reference is for "
            + ", ".join(name for name in theirs if name not in select(theirs, FROM_DATA))
        )
    if not REFERENCE.value and (paired := select(names, ["originals"])):
        raise UsageError(f"--metrics={','.join(paired)} needs --reference, the originals")
    images = evaluation.from_file(evaluate_flags.IMAGES.value or "").first(flags.FLAGS.num)
    result: dict[str, Any] = {"images": evaluate_flags.IMAGES.value}
    # Files that are compared with files need no config.
    cfg = evaluate_flags.read_config(names)
    others = [name for name in names if name not in ours]
    reference = read_reference(cfg) if select(others, ["reference", "originals"]) else None
    inputs = open_inputs(folder, others)
    if distances := select(names, ["network"]):
        network = load_network(cfg, "--images")
        assert cfg is not None  # such metrics need one
        some = images if flags.FLAGS.num else images.first(cfg.eval.num)
        real = real_images.open_split(cfg).first(some.num)
        result |= evaluation.evaluate(some, real, distances, network=network)
    with name_keys({"reference": "--reference"}):
        result |= evaluation.evaluate(images, reference, others, **inputs)
    return close_inputs(result, inputs)


def sweep(folder: Path, names: list[str]) -> None:
    """Measure the distance, or obedience to captions, for combinations of sampler options.

    Args:
        folder: workdir; files are written to its folder sweeps.
        names: of metrics: distance or captions.

    Raises:
        UsageError: other metrics are asked for, or a reference is given.
    """
    captions = names == ["captions"]
    if flags.FLAGS["metrics"].present and names not in (["distance"], ["captions"]):
        raise UsageError("--sweep measures --metrics=distance or --metrics=captions")
    if REFERENCE.value or evaluate_flags.REFERENCE_NUM.value:
        raise UsageError("--sweep compares with the config's training images, no --reference")
    cfg = run_flags.read_config()
    if not captions:
        load_network(cfg, "--sweep")
    with name_keys({"another name": "another --name"}):
        measuring.sweep_samplers(
            measuring.prepare_model(run_flags.open_run(cfg)),
            evaluate_flags.SWEEP.value,
            folder / "sweeps" / evaluate_flags.NAME.value,
            num=flags.FLAGS.num or cfg.eval.num,
            seeds=evaluate_flags.SEEDS.value,
            captions=captions,
        )


def measure_model(folder: Path, names: list[str]) -> dict[str, Any]:
    """Measure the samples of a run's model, and its likelihood.

    Args:
        folder: the workdir.
        names: of metrics.

    Returns:
        Numbers and tables by name.

    Raises:
        UsageError: metrics are asked for that need images in files.
    """
    cfg = run_flags.read_config()
    if find_task_kind(cfg).reconstructs:
        return measure_autoencoder(cfg, folder, names)
    if SAVE_RECONSTRUCTIONS.value:
        raise UsageError(f"--save_reconstructions: a {cfg.task} model reconstructs nothing")
    if needless := select(names, ["originals", "prompts"]):
        other = "--reference" if select(names, ["originals"]) else "--prompts"
        raise UsageError(f"{', '.join(needless)} need --images and {other}")
    if not cfg.eval.features and (distances := select(names, ["network"])):
        logging.warning("no feature network for %s: no distances", cfg.data.name)
        names = [name for name in names if name not in distances]
    inputs = open_inputs(folder, names)  # what is missing is said before images are made
    some = [name for name in select(names, ["reference"]) if not select([name], FROM_DATA)]
    reference = read_reference(cfg) if some else None
    found = measuring.measure_samples(
        measuring.prepare_model(run_flags.open_run(cfg)),
        names,
        num=flags.FLAGS.num or cfg.eval.num,
        seed=flags.FLAGS.seed,
        seeds=evaluate_flags.SEEDS.value,
        reference=reference,
        **inputs,
    )
    return close_inputs(found, inputs)


def measure_autoencoder(cfg: ConfigDict, folder: Path, names: list[str]) -> dict[str, Any]:
    """Measure an autoencoder's reconstructions of test images, and draw some beside the figures.

    Args:
        folder: the workdir.
        names: of metrics.

    Returns:
        Numbers by name.

    Raises:
        UsageError: metrics of a diffusion model are asked for, or a reference is given.
    """
    # An autoencoder is measured by pairs of images.
    known = ["distance", *select(METRICS, ["originals"])]
    if others := [name for name in names if name not in known]:
        if flags.FLAGS["metrics"].present:
            raise UsageError(
                f"{', '.join(others)}: an autoencoder is measured by {', '.join(known)} of test "
                "images and their reconstructions (rfid is FID)"
            )
        names = [name for name in names if name in known]
    if REFERENCE.value:
        raise UsageError("reconstructions are compared with the test images, no --reference")
    inputs = open_inputs(folder, names)
    state = run_flags.open_run(cfg).state
    save_png(
        first_stage.draw_reconstructions(cfg, state.ema),
        find_output_path(folder).with_suffix(".png"),
    )
    found = measuring.measure_autoencoder(
        cfg,
        state,
        names,
        flags.FLAGS.num or cfg.eval.num,
        save=SAVE_RECONSTRUCTIONS.value and SAVE_RECONSTRUCTIONS.value.removesuffix(".npz"),
        **inputs,
    )
    return close_inputs(found, inputs)


def _finish(result: dict[str, Any], folder: Path) -> None:
    """Write what was measured as JSON, and print the numbers."""
    out = find_output_path(folder)
    write_json(out, result)
    # Numbers of the sections that people look for are printed with the others.
    sections = [result, *(result.get(METRICS[n].section, {}) for n in ("baselines", "fid"))]
    for key, value in [pair for section in sections for pair in section.items()]:
        if isinstance(value, int | float | str):
            print(f"{key:>24}: {value:.5g}" if isinstance(value, float) else f"{key:>24}: {value}")
    logging.info("written to %s", out)


if __name__ == "__main__":
    run_flags.run(main, USES)
