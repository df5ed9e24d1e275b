"""Speed, costs and baselines: `python -m experiments.benchmarks.NAME`."""
