"""The one trainer: state, step, loop, optimizer, checkpoints, sharding. It knows only `Task`."""

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
