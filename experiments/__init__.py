"""The entry points of a checkout: `python -m experiments.NAME`.

| command | what it does |
|---|---|
| `train` | trains a config, or resumes a run |
| `sample`, `control` | draw images of a run, or of a ControlNet by hints |
| `evaluate`, `export`, `generate`, `web` | the commands of `diffjax`, in a checkout |
| `plan` | sizes and costs of a config, also on chips that are not there |
| `sweep`, `report` | train variants of a config, and write pages about runs |
| `encode` | writes the latents of a data set |
| `reproduce` | measures the results of the papers again |
| `train_classifier` | makes the feature networks of `diffjax.metrics` |

Speed and costs are measured in `experiments.benchmarks`. These modules read flags, call the library
and write files. They may import anything; nothing imports them.
"""
