"""Many runs and absent chips: sweeps on executors, and training steps compiled for topologies.

Import the module you need: `jobs` says what an executor is, `local`, `slurm` and `kubernetes` are
those that there are, `manifest` and `run_queue` keep a sweep going, `step_plan` compiles a step.
"""
