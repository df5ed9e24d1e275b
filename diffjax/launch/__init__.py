"""Sweeps of many runs, and training steps compiled for chips that are not there.

Import the module that you need:

- `jobs` says what a job and an executor are; `local`, `slurm` and `kubernetes` are executors;
- `overrides`, `manifest` and `run_queue` keep a sweep going; `optuna_search` proposes its runs;
- `topologies` describes chips, `step_plan` compiles a step for them, `program_costs` counts what it
  does, and `mesh_search` looks for the best mesh.

`experiments.sweep` and `experiments.plan` are the commands. Nothing here knows what a config
trains: a command is run, or a task's step is compiled.
"""
