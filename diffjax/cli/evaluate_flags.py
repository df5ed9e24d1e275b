"""The flags of `diffjax evaluate`: which of them have an effect when, and what they open.

There are four ways to evaluate (`MODES`), and a flag that has no effect on the one that is asked
for is refused. What metrics need comes from `evaluation.METRICS`, so a new metric needs no code
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from diffjax import evaluation, metrics
from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError, name_keys
from diffjax.evaluation import METRICS, FeatureStore, Reference
from diffjax.evaluation.metric_table import check_names, find_metrics_of, needs_spatial
from diffjax.runs import real_images

run_flags.define_sampling_flags()
NAMES = flags.DEFINE_list(
    "metrics", ["distance", "baselines", "bits"], f"Metrics to measure, of {', '.join(METRICS)}."
)
IMAGES = flags.DEFINE_string(
    "images",
    None,
    "Images to measure in place of samples: an npz with `images` or `arr_0`, or a folder.",
)
REFERENCE = flags.DEFINE_string(
    "reference",
    None,
    "Images to compare with: a folder, or an npz of images or statistics. The training images if "
    "not set.",
)
REFERENCE_NUM = flags.DEFINE_integer(
    "reference_num", None, "Number of reference images that Inception sees; all if not set.", 1
)
SAVE_REFERENCE = flags.DEFINE_string(
    "save_reference", None, "Write the statistics of the reference to this npz, and stop."
)
INCEPTION = flags.DEFINE_string("inception", None, "Weights of Inception, as .pth or .safetensors.")
LEGACY = flags.DEFINE_bool(
    "allow_legacy_pickle", False, "Also read --inception from a pickle; its code is not run."
)
CLIP = flags.DEFINE_string("clip", None, "Folder of a CLIPModel, or its name on the Hub, for clip.")
PROMPTS = flags.DEFINE_string(
    "prompts", None, "File with one line of text per image, for the metric clip."
)
LPIPS = flags.DEFINE_string("lpips", None, "Weights of LPIPS (VGG16), for the metric diversity.")
SAVE_RECONSTRUCTIONS = flags.DEFINE_string(
    "save_reconstructions",
    None,
    "NAME of NAME.npz and NAME-originals.npz, for an autoencoder's reconstructions and originals.",
)
PAIRS = flags.DEFINE_integer("pairs", 1000, "Number of pairs of images that diversity compares.", 2)
RESIZE = flags.DEFINE_enum(
    "resize", "tensorflow", ["tensorflow", "pytorch_fid"], "How images are resized for Inception."
)
OUT = flags.DEFINE_string(
    "out", None, "File of the results; evaluation.json in --workdir if not set."
)
SWEEP = flags.DEFINE_multi_string(
    "sweep", [], "KEY=VALUE,VALUE,... of config.sample; repeat the flag for a product."
)
SEEDS = flags.DEFINE_integer(
    "seeds", 1, "Number of sampling seeds of the distance, or of a cell of --sweep.", 1
)
BITS_STEPS = flags.DEFINE_list(
    "bits_steps", [], "Numbers of steps with which the bound is measured too."
)
NAME = flags.DEFINE_string("name", "sweep", "Name of the files of --sweep.")

# Names of the flags of this module.
OWN = sorted(flag.name for flag in flags.FLAGS.get_flags_for_module(__name__))

# Flags that are of use to each of the ways to evaluate: those of a model and its samples, those of
# Inception's features, and those of images in files.
_MODEL = ("best", "weights", "sampler", "steps", "grid", "eta", "variance", "guidance")
_FEATURES = ("reference", "reference_num", "inception", "allow_legacy_pickle", "resize")
_FILES = ("clip", "prompts", "lpips", "pairs", "num", "out", "metrics")
# Flags that have an effect, by the flag that chooses the way to evaluate; "" is that without any.
MODES = {
    "save_reference": ("save_reference", *_FEATURES),
    "images": ("images", *_FEATURES, *_FILES),
    # The reference has a message of its own.
    "sweep": ("sweep", "name", "seeds", "metrics", "num", "reference", "reference_num", *_MODEL),
    "": (
        *(*_MODEL, *_FEATURES, "lpips", "pairs", "num", "out", "metrics"),
        *("seed", "seeds", "bits_steps", "save_reconstructions"),
    ),
}
# The input of metrics that a flag gives, see `diffjax.evaluation.INPUTS`.
INPUT_OF = {
    **dict.fromkeys(("inception", "allow_legacy_pickle", "resize"), "inception"),
    **{name: name for name in ("clip", "prompts", "lpips", "pairs", "bits_steps")},
}
_CLIP = (
    "--clip=FOLDER, a CLIPModel of transformers with its tokenizer, and --prompts=FILE, a text a "
    "line"
)
# What each flag has to name, for messages.
WHERE = {
    "inception": f"Inception: {metrics.INCEPTION_SOURCE}. Then pass --inception=FILE, and "
    "--allow_legacy_pickle if it is the .pth file",
    "clip": _CLIP,
    "prompts": _CLIP,
    "lpips": "--lpips=FILE, the weights of LPIPS (VGG16) as safetensors: see "
    "diffjax.pretrained.lpips.load_lpips",
}
# Inputs of metrics that a config and its data give.
FROM_DATA = {"network", "pool", "scenes", "model"}
# Inputs of metrics that a model gives.
FROM_MODEL = {"untrained", "scenes", "model"}


def read_names() -> list[str]:
    """Read the names of the metrics that are asked for.

    Raises:
        ConfigError: a name is unknown.
        UsageError: a flag has no effect on these metrics, or beside other flags.
    """
    names = list(dict.fromkeys(NAMES.value))
    check_names(names)
    _refuse_unused(names)
    return names


def _refuse_unused(names: Sequence[str]) -> None:
    """Refuse flags that have no effect.

    Raises:
        UsageError: a flag has no effect on the metrics that are asked for, or beside other flags.
    """
    mode = next(name for name in MODES if name == "" or flags.FLAGS[name].value)
    beside = f"beside --{mode}" if mode else "without --images or --sweep"
    every = {name for taken in MODES.values() for name in taken} | {"seed"}
    for name in [name for name in flags.FLAGS if flags.FLAGS[name].present]:
        if name in every and name not in MODES[mode]:
            raise UsageError(f"--{name} has no effect {beside}")
        takers = find_metrics_of([INPUT_OF[name]]) if name in INPUT_OF else names
        if mode != "save_reference" and not set(takers) & set(names):
            raise UsageError(
                f"--{name} has no effect on --metrics={','.join(names)}; it is for "
                f"{', '.join(takers)}"
            )


def select(names: Iterable[str], inputs: Iterable[str]) -> list[str]:
    """Select the metrics that cannot do without one of the inputs.

    Args:
        names: of metrics.
        inputs: names in `evaluation.INPUTS`.
    """
    return [name for name in names if set(inputs) & set(METRICS[name].needs)]


def open_inputs(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Open the inputs of metrics that flags name: networks, texts and numbers.

    Args:
        folder: workdir, in which features are kept.
        names: of metrics.

    Returns:
        Inputs by their names in `evaluation.INPUTS`.

    Raises:
        UsageError: a flag is missing; the message says what it has to name.
        ValueError, OSError: a file cannot be read.
    """
    for key, what in WHERE.items():
        if not flags.FLAGS[key].value and (some := select(names, [key])):
            raise UsageError(f"--metrics={','.join(some)} needs {what}")
    inputs: dict[str, Any] = {"pairs": PAIRS.value, "bits_steps": _parse_steps()}
    if select(names, ["inception"]):
        inputs["inception"] = open_store(folder, spatial=needs_spatial(names))
    if select(names, ["clip"]):
        inputs["clip"] = evaluation.load_text_scorer(str(CLIP.value))
        inputs["prompts"] = evaluation.read_prompts(str(PROMPTS.value))
    if select(names, ["lpips"]):
        inputs["lpips"] = evaluation.load_lpips_distance(str(LPIPS.value))
    return inputs


def _parse_steps() -> list[int]:
    """Parse --bits_steps.

    Raises:
        UsageError: it holds something that is no number of steps.
    """
    wrong = [text for text in BITS_STEPS.value if not text.isdecimal() or int(text) < 1]
    if wrong:
        raise UsageError(f"--bits_steps takes numbers of steps, got {wrong[0]!r}")
    return [int(text) for text in BITS_STEPS.value]


def open_store(folder: Path, *, spatial: bool) -> FeatureStore:
    """Open the store that computes Inception's features and keeps them in a workdir.

    Args:
        folder: the workdir.
        spatial: whether spatial features (sFID) are computed too.

    Raises:
        UsageError: --inception is missing.
        ValueError, OSError: its file cannot be read.
    """
    if not INCEPTION.value:
        raise UsageError(f"--save_reference needs {WHERE['inception']}")
    with name_keys({"allow_legacy_pickle": "--allow_legacy_pickle"}):
        network = evaluation.load_inception(
            INCEPTION.value, allow_legacy_pickle=LEGACY.value, resize=RESIZE.value
        )
    return FeatureStore(network, folder / "features", spatial=spatial)


def read_reference(cfg: ConfigDict | None) -> Reference:
    """Read --reference or, without it, the training images of the config.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    if not REFERENCE.value:
        return Reference(real_images.open_split(cfg).first(REFERENCE_NUM.value))
    with name_keys({"num": "--reference_num"}):
        return evaluation.read_reference(REFERENCE.value, REFERENCE_NUM.value)


def read_config(names: Sequence[str]) -> ConfigDict | None:
    """Read the config, unless the metrics compare files alone and no config was given.

    Returns:
        The config, or None.
    """
    files = REFERENCE.value or not select(names, ["reference", "originals"])
    from_files = files and not select(names, FROM_DATA) and run_flags.CONFIG.value is None
    return None if from_files else run_flags.read_config()


def find_output_path(folder: Path) -> Path:
    """Find the file of the results: --out, or evaluation.json in the workdir."""
    return Path(OUT.value) if OUT.value else folder / "evaluation.json"


def close_inputs(result: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Remove the features that were kept, and record how images were resized for Inception.

    Args:
        result: what was measured.
        inputs: those of `open_inputs`.

    Returns:
        The result with that record.
    """
    if "inception" in inputs:
        inputs["inception"].clear()
        result.setdefault("inception", {})["resize"] = RESIZE.value
    return result


def load_network(cfg: ConfigDict, asker: str) -> metrics.FeatureNetwork:
    """Load the small classifier of the config's data, whose features distances are measured in.

    Args:
        asker: the flag that needs it, for the message.

    Raises:
        UsageError: there is none for these data.
    """
    if not cfg.eval.features:
        raise UsageError(f"{asker} needs config.eval.features, or metrics of Inception")
    return metrics.feature_network(cfg.eval.features)
