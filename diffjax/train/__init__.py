"""The one trainer: state, step, loop, optimizer, checkpoints, sharding.

It knows an experiment only as a `Task`. `fit` trains in memory; `train` also writes a workdir with
the log, checkpoints and the config, and resumes from it. Both take the same steps (`make_step`).

| file | holds |
|---|---|
| step.py | the state, and the compiled step |
| optimizer.py | optimisers and learning-rate schedules of a config |
| loop.py, prepare.py | the loop, and what it prepares once |
| window.py, reporter.py, trackers.py | metrics, their files, and services that show them |
| checkpoint.py, files.py, frozen.py, resume.py | what is stored, and checked when a run resumes |
| sharding.py, hosts.py, preempt.py | devices, processes and signals |
"""

from diffjax.train.checkpoint import Best, CheckpointMismatch, Checkpoints
from diffjax.train.fit import fit
from diffjax.train.optimizer import learning_rate, make_optimizer
from diffjax.train.preempt import Preempted
from diffjax.train.reporter import Reporter
from diffjax.train.sealed_files import CheckpointError
from diffjax.train.step import State, init_state, make_step
from diffjax.train.trackers import TRACKERS, Tracker
from diffjax.train.training_loop import train
from diffjax.train.window import NonFiniteLoss

__all__ = [
    "TRACKERS",
    "Best",
    "CheckpointError",
    "CheckpointMismatch",
    "Checkpoints",
    "NonFiniteLoss",
    "Preempted",
    "Reporter",
    "State",
    "Tracker",
    "fit",
    "init_state",
    "learning_rate",
    "make_optimizer",
    "make_step",
    "train",
]
