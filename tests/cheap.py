"""Flags that make a training cheap to compile, in tests of what comes before or after it."""

# Adam, its clipping and its averages are a third of the program of a small network's step.
SGD = ("--config.optim.name=sgd", "--config.optim.clip=0")
# One resolution has half the layers of two.
ONE_LEVEL = ("--config.network.multipliers=(1,)", "--config.network.attention_levels=(0,)")
