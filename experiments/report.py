"""One self-contained HTML page about a run: loss curve, images, figures, the paper's values.

    python -m experiments.report --workdir=runs/digits

Of several runs, a comparison: table, curves, and the best by a metric.

    python -m experiments.report --workdir=runs/lr --metric=loss         # a sweep's runs
    python -m experiments.report --workdir=out --runs=runs/a,runs/b --metric=fid

The table of results in README.md, from the files under docs/results.

    python -m experiments.report --results

The page docs/published.md, from configs/published.

    python -m experiments.report --published

Reads what the run wrote (metrics.jsonl, samples/, evaluation.json, sweeps/) and computes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags, logging

from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.cli.report_page import format_comparison, format_run
from experiments import published
from experiments.reproductions import results

RUNS = flags.DEFINE_list("runs", [], "Folders of the runs to compare; those of a sweep if not set.")
METRIC = flags.DEFINE_string("metric", "loss", "The measure by which the best run is chosen.")
RESULTS = flags.DEFINE_bool("results", False, "Write the table of results in README.md again.")
PUBLISHED = flags.DEFINE_bool("published", False, "Write docs/published.md again.")
MODE = flags.DEFINE_enum(
    "mode", "min", ["min", "max"], "Whether the lowest or the highest --metric is best."
)


def _list_runs(folder: Path) -> list[Path]:
    """List the runs to compare.

    Args:
        folder: workdir, which may be that of a sweep.

    Returns:
        The folders of --runs, or else those of a sweep's runs that have begun; empty for the
        workdir of a single run.
    """
    if RUNS.value:
        return [Path(name) for name in RUNS.value]
    stored = folder / "sweep.json"
    if not stored.exists():
        return []
    names = [run["name"] for run in json.loads(stored.read_text())["runs"]]
    return [folder / name for name in names if (folder / name / "config.json").exists()]


FLAG_GROUPS = {"Report": ("workdir", "runs", "metric", "mode", "results", "published", "config")}
# Flags of other modules that this command uses.
USES = ("config", "workdir")


def main() -> None:
    """Write the page that the flags ask for: about a run, several, all results or the papers.

    Raises:
        UsageError: nothing was trained in the workdir.
    """
    # The table in README.md needs no run.
    if RESULTS.value:
        readme = Path("README.md")
        readme.write_text(results.insert_table(readme.read_text(), Path("docs/results")))
        logging.info("the table in %s is up to date", readme)
        return
    if PUBLISHED.value:
        Path("docs/published.md").write_text(published.write_page())
        logging.info("docs/published.md is up to date")
        return
    folder = run_flags.read_workdir()
    out = folder / "report.html"
    # Several runs are compared, and one alone has a page of its own.
    if runs := _list_runs(folder):
        folder.mkdir(parents=True, exist_ok=True)
        page, table = format_comparison(runs, METRIC.value, MODE.value)
        out.write_text(page)
        print(table)
    elif (folder / "metrics.jsonl").exists():
        out.write_text(format_run(run_flags.read_config(), folder))
    else:
        raise UsageError(f"there is no metrics.jsonl in {folder}: train first")
    logging.info("open %s", out)


if __name__ == "__main__":
    run_flags.run(main, USES)
