r"""Train the frozen classifier whose features `diffjax.metrics` uses.

    python -m experiments.train_classifier --dataset=digits --out=diffjax/metrics/weights
    python -m experiments.train_classifier --dataset=fashion_mnist --out=diffjax/metrics/weights
    python -m experiments.train_classifier --dataset=fashion_mnist14 --out=diffjax/metrics/weights
    python -m experiments.train_classifier --dataset=shapes_single --out=runs/classifier

The first three commands made the weights in the package, in about 1, 6 and 3 minutes of one core;
the last one makes a perceptual network for the autoencoders of `shapes`. The same
flags on the same machine give the same weights. Distances under different weights cannot be
compared, so a change that retrains them must also raise the version in
`diffjax.metrics.features.VERSIONS`.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from tqdm import tqdm

from diffjax import data, metrics
from diffjax.cli import command_line
from diffjax.metrics.features import VERSIONS
from diffjax.nets.classifier import Classifier
from diffjax.types import Params

# Steps of the shipped weights, by data set.
STEPS = {"fashion_mnist": 3600, "fashion_mnist14": 3600, "digits": 2000, "shapes_single": 600}
# Parameter of the Beta distribution of mixup, and s.d. of the noise on images.
MIXUP = {"fashion_mnist": 0.2, "fashion_mnist14": 0.2, "digits": 1.0, "shapes_single": 0.2}
# Standard deviation of the noise on images.
JITTER = {"fashion_mnist": 0.0, "fashion_mnist14": 0.0, "digits": 0.3, "shapes_single": 0.1}

FLAGS = flags.FLAGS
flags.DEFINE_enum("dataset", "fashion_mnist", sorted(STEPS), "Data set that the classifier learns.")
flags.DEFINE_string(
    "out", None, "Folder that <dataset>-<version>.safetensors is written to.", required=True
)
flags.DEFINE_integer(
    "steps",
    None,
    "Number of training steps; that of the shipped weights if not set.",
    lower_bound=1,
)
flags.DEFINE_integer("seed", 0, "Seed of the initialisation and of the order of the data.")
flags.DEFINE_string("data_dir", None, "Folder of the data; where it is installed if not set.")

# Images of a step.
BATCH_SIZE = 128
# Largest learning rate, after the warm-up.
PEAK_RATE = 2e-3
# Decoupled weight decay of AdamW.
WEIGHT_DECAY = 0.02


def mix(
    key: jax.Array, image: jax.Array, target: jax.Array, beta: float
) -> tuple[jax.Array, jax.Array]:
    """Mixup (Zhang et al. 2018): each example blended with its neighbour, weight ~ Beta(b, b).

    Without it the features of a class shrink towards a point; on the few digits it nearly doubles
    the effective number of directions they fill, and the test accuracy rises.
    """
    weight = jax.random.beta(key, beta, beta, (len(image),))
    w = weight[:, None, None, None]
    blended = w * image + (1 - w) * jnp.roll(image, 1, axis=0)
    v = weight[:, None]
    return blended, v * target + (1 - v) * jnp.roll(target, 1, axis=0)


def train(
    source: data.Source, model: Classifier, *, steps: int, seed: int, mixup: float, jitter: float
) -> Params:
    """Train a classifier by AdamW with warm-up and cosine decay.

    The loss is the cross-entropy of mixed images and labels, see `mix`, with noise on the images.

    Args:
        source: the training data.
        model: the network.
        seed: of the initialisation, the order of the data and the noise.
        mixup: parameter b of the Beta distribution of the blending weights.
        jitter: standard deviation of the noise on images, which lie in [-1, 1].

    Returns:
        Its parameters.
    """
    rate = optax.warmup_cosine_decay_schedule(0.0, PEAK_RATE, steps // 20, steps)
    optimizer = optax.adamw(rate, weight_decay=WEIGHT_DECAY)
    shape = (1, *source.shape)
    key, init_key = jax.random.split(jax.random.key(seed))
    params = jax.jit(model.init)(init_key, jnp.zeros(shape))["params"]
    opt = optimizer.init(params)

    def loss(params: Params, image: jax.Array, target: jax.Array) -> jax.Array:
        """Compute the mean cross-entropy of mixed labels."""
        _, logits = model.apply({"params": params}, image)
        return optax.softmax_cross_entropy(logits, target).mean()

    @jax.jit
    def step(
        params: Params, opt: optax.OptState, i: jax.Array, image: jax.Array, label: jax.Array
    ) -> tuple[Params, optax.OptState, jax.Array]:
        """Mix a batch, and take one step of the optimiser."""
        target = jax.nn.one_hot(label, model.num_classes)
        step_key = jax.random.fold_in(key, i)
        image, target = mix(step_key, image, target, mixup)
        # Noise on images keeps features from relying on exact grey values.
        image += jitter * jax.random.normal(jax.random.fold_in(step_key, 1), image.shape)
        value, grads = jax.value_and_grad(loss)(params, image, target)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, value

    batches = iter(data.batches(source, batch_size=BATCH_SIZE, seed=seed))
    for i in (bar := tqdm(range(steps), desc="classifier", mininterval=1.0)):
        batch = next(batches)
        params, opt, value = step(params, opt, i, batch["image"], batch["label"])
        if i % 100 == 0:
            bar.set_postfix(loss=f"{value:.3f}")
    return params


def measure_accuracy(network: metrics.FeatureNetwork, source: data.Source) -> float:
    """Measure the share of images that a network classifies correctly, in [0, 1].

    Args:
        network: as it is used for distances, from its file.
        source: images with labels.
    """
    test = source.take(np.arange(len(source)))
    probs = metrics.extract(network, test["image"]).probs
    return float(np.mean(probs.argmax(axis=1) == test["label"]))


def main() -> None:
    """Train a classifier, measure it on the test split, and write it.

    It is measured through the file that was written, since that is what everybody uses.
    """
    name = FLAGS.dataset
    steps = STEPS[name] if FLAGS.steps is None else FLAGS.steps
    source, test = (
        data.load(name, split=split, data_dir=FLAGS.data_dir) for split in ("train", "test")
    )
    model = Classifier(num_classes=source.num_classes)
    recipe = {"steps": steps, "seed": FLAGS.seed, "mixup": MIXUP[name], "jitter": JITTER[name]}
    params = train(source, model, **recipe)

    version = VERSIONS.get(name, "v1")
    path = Path(FLAGS.out) / f"{name}-{version}.safetensors"

    def save(accuracy: float) -> metrics.FeatureNetwork:
        """Write the weights with what is known of them, and read them back."""
        metrics.save_network(
            path,
            params,
            model,
            dataset=name,
            version=version,
            shape=source.shape,
            levels=source.levels,
            accuracy=accuracy,
            recipe={**recipe, "batch_size": BATCH_SIZE},
        )
        return metrics.load_network(path)

    # Measured through the file just written: it is the file that everybody uses.
    accuracy = measure_accuracy(save(0.0), test)
    save(accuracy)
    print(f"{path}: test accuracy {accuracy:.4f}, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    command_line.run(main)
