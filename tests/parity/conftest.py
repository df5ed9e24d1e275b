import importlib.util

if importlib.util.find_spec("torch"):
    from experiments.benchmarks import torch_operators  # noqa: F401
