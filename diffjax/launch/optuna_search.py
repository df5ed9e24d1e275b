"""Overrides that Optuna proposes, from what earlier runs measured; it needs the extra ``sweep``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diffjax.launch.manifest import Manifest, SweepRun
from diffjax.types import ConfigError, choose

Axis = tuple[str, tuple[Any, ...]]  # "choice" and choices; "int", "float" or "log" and two bounds


def propose_overrides(
    axes: Mapping[str, Axis],
    manifest: Manifest,
    trials: int,
    measure: Callable[[SweepRun], float | None],
    *,
    maximize: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield proposals of Optuna's TPE sampler, which has seen every run that is finished by then.

    Runs that the manifest has already come first, so that an interrupted search goes on.

    Args:
        axes: what may be varied, by key of the config.
        manifest: of the sweep.
        trials: number of runs in all.
        measure: the value that a finished run is judged by; None if the run does not say.
        maximize: whether larger values are better.

    Raises:
        ConfigError: Optuna is not installed.
        ValueError: an axis is of no known kind.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("a search by Optuna needs it: pip install 'diffjax[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table: dict[str, Callable[..., Any]] = {
        "choice": lambda *values: optuna.distributions.CategoricalDistribution(values),
        "int": optuna.distributions.IntDistribution,
        "float": optuna.distributions.FloatDistribution,
        "log": lambda low, high: optuna.distributions.FloatDistribution(low, high, log=True),
    }
    where = {k: choose("axis", kind, table)(*values) for k, (kind, values) in axes.items()}
    yield from (dict(run.overrides) for run in list(manifest.runs)[:trials])
    for trial in range(len(manifest.runs), trials):
        study = optuna.create_study(
            direction="maximize" if maximize else "minimize",
            sampler=optuna.samplers.TPESampler(seed=trial, n_startup_trials=4),
        )
        for run in manifest.runs:
            value = measure(run)
            if run.status == "done" and value is not None:
                study.add_trial(
                    optuna.trial.create_trial(
                        params=run.overrides, distributions=where, value=value
                    )
                )
        yield study.ask(where).params
