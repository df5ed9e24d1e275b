"""The metrics of the steps since the last line of the log, and the rule for those not finite.

Metrics stay on the devices until they are needed, so that the host does not wait in the step loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import jax
import optax

from diffjax.types import Array

LOOK_AHEAD = (
    2  # steps queued beyond the running one: this hides the host's work and keeps clocks right
)
Metrics = dict[str, float]
OnMetrics = Callable[[int, Metrics], None]  # (step, what the line of the step says)


class NonFiniteLoss(RuntimeError):
    """The loss, its gradient or the updated parameters became NaN or infinite.

    Attributes:
        step: the first bad step.
    """

    def __init__(self, text: str, step: int):
        super().__init__(text)
        self.step = step


class Window:
    """Metrics of the steps since the last line of the log.

    Args:
        report: called with the step and the metrics of every line.
        step: the step before the first of these steps.
        values: metrics since the last line, from before the run was interrupted.
        rate: learning rate of a step, for the lines; None if it is not known.
        skip: whether steps that are not finite are skipped, and counted.
    """

    def __init__(
        self,
        report: OnMetrics,
        step: int,
        values: list[Metrics],
        *,
        rate: optax.Schedule | None = None,
        skip: bool = False,
    ):
        self._report, self._rate, self._skip = report, rate, skip
        self._values: list[Mapping[str, Array | float]] = list(values)
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        """Leave the time since the last line out of the next line's speed."""
        self._clock = time.monotonic(), step

    def add(self, metrics: Mapping[str, Array]) -> None:
        """Add a step's metrics, and wait while more than LOOK_AHEAD steps are queued."""
        self._values.append(metrics)
        if len(self._values) > LOOK_AHEAD:
            jax.block_until_ready(self._values[-1 - LOOK_AHEAD]["loss"])

    def fetch(self, step: int) -> list[Metrics]:
        """Return the metrics of the steps so far as numbers.

        Args:
            step: the last of these steps.

        Raises:
            NonFiniteLoss: a step is not finite and such steps are not skipped; the first is named.
        """
        host = jax.device_get(self._values)
        values = [{k: float(v) for k, v in value.items()} for value in host]
        self._values = list(values)  # a copy, since `add` may run while a checkpoint is written
        for offset, value in enumerate(values, 1 - len(values)):
            if not value["finite"] and not self._skip:
                raise _explain_not_finite(value, step + offset)
        return values

    def report(self, step: int, measure: Callable[[], Metrics] = dict) -> float:
        """Write the means as the line of ``step``, start over, and return the mean loss.

        Steps that were skipped are counted beside the means of the others.

        Args:
            step: the last of these steps.
            measure: called when the steps are done; its metrics are written in the same line.

        Raises:
            NonFiniteLoss: a step is not finite and such steps are not skipped, or all are; the
                first is named.
        """
        values = self.fetch(step)
        good = [value for value in values if value["finite"]]
        if not good:
            raise _explain_not_finite(values[0], step + 1 - len(values))
        means = {k: math.fsum(v[k] for v in good) / len(good) for k in good[0]}
        means.pop("finite")
        if self._skip:
            means["skipped"] = float(len(values) - len(good))
        since, first = self._clock
        speed = (step - first) / max(time.monotonic() - since, 1e-9)
        rate = {} if self._rate is None else {"lr": float(self._rate(step - 1))}
        self._report(step, {**means, **rate, "steps_per_second": speed, **measure()})
        self._values = []
        self.restart_clock(step)
        return means["loss"]


def _explain_not_finite(value: Metrics, step: int) -> NonFiniteLoss:
    """Return the error of a step that is not finite, with what to do about it."""
    return NonFiniteLoss(
        f"the loss, its gradient or the updated parameters are not finite at step {step} "
        f"(loss {value['loss']}, gradient norm {value['grad_norm']}); the last good checkpoint "
        "is kept. Lower optim.lr, or set optim.clip, or train.nonfinite to skip or rollback",
        step,
    )
