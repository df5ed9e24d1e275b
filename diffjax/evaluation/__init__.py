"""Measures of images and of models, as functions without flags.

`evaluate` measures images by any metrics of the table `METRICS`, in three lines::

    from diffjax import evaluation, metrics
    network = metrics.feature_network("fashion_mnist")
    scores = evaluation.evaluate(images, test_images, metrics=["distance"], network=network)

What it joins can be used by itself: sets of images that are read when they are needed
(`image_sets`), the features that Inception finds in them (`feature_store`), and the measures
(`feature_distance`, `inception_scores`, `pair_scores`, `text_scores`, `likelihood_bits`,
`hint_fidelity`, `reconstructions`). `sweeps` measures combinations of sampler options, and `plots`
draws them. None of them knows configs' data or where models are stored.
"""

from diffjax.evaluation.feature_distance import measure_baselines, measure_distance
from diffjax.evaluation.feature_store import FeatureStore, load_inception
from diffjax.evaluation.image_sets import (
    ImageSet,
    from_array,
    from_file,
    from_maker,
    from_source,
    save_images,
)
from diffjax.evaluation.likelihood_bits import PixelModel
from diffjax.evaluation.metric_table import INPUTS, METRICS, Metric, evaluate
from diffjax.evaluation.pair_scores import load_lpips_distance
from diffjax.evaluation.references import Reference, read_reference
from diffjax.evaluation.text_scores import TextScorer, load_text_scorer, read_prompts

__all__ = [
    "INPUTS",
    "METRICS",
    "FeatureStore",
    "ImageSet",
    "Metric",
    "PixelModel",
    "Reference",
    "TextScorer",
    "evaluate",
    "from_array",
    "from_file",
    "from_maker",
    "from_source",
    "load_inception",
    "load_lpips_distance",
    "load_text_scorer",
    "measure_baselines",
    "measure_distance",
    "read_prompts",
    "read_reference",
    "save_images",
]
