"""Pages about runs: one self-contained HTML file each, from what the runs wrote.

`experiments.report` writes them. Pictures are embedded, so a page can be sent as one file.
"""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import sys
from pathlib import Path

from ml_collections import ConfigDict

from diffjax.cli import figures
from diffjax.cli.page_parts import (
    fold,
    format_bar,
    format_explained,
    format_image,
    format_pairs,
    make_page,
    plot_losses,
)
from diffjax.cli.tables import format_html_table, format_table, format_value
from diffjax.evaluation.image_grids import FILM
from diffjax.runs import comparison
from diffjax.runs.real_images import SHOWN_REAL
from diffjax.runs.record import SUMMARY
from diffjax.types import ConfigError, JsonObject
from diffjax.writing import read_json_lines

# Values of the papers, on their data and with Inception features.
PAPERS = {
    "DDPM (Ho et al. 2020), CIFAR-10, 1000 steps": "FID 3.17, IS 9.46, at most 3.75 bits/dim "
    "(rate 1.78 + distortion 1.97)",
    "DDIM (Song et al. 2020), CIFAR-10, eta 0, 10/20/50/100 steps": "FID 13.36/6.84/4.67/4.16",
    "Improved DDPM (Nichol & Dhariwal 2021), CIFAR-10": "FID 3.19 at 3.17 bits/dim (hybrid), "
    "11.47 at 2.94 (vlb)",
}
# By config.task, and by config.parameterization.name.
_KINDS = {
    "diffusion": "A diffusion model",
    "distillation": "A diffusion model, tuned from another,",
    "autoencoder": "An autoencoder",
    "classifier": "A classifier",
    "controlnet": "A ControlNet",
}
_PREDICTIONS = {"eps": "the noise", "x0": "the picture", "v": "v, a mixture of noise and picture"}
# Names that experiments.sample gives its files.
_SAMPLES = re.compile(r"(.+)-(\d+)-step(\d+)-seed(\d+)")


def format_run(cfg: ConfigDict, folder: Path) -> str:
    """Format the page about a run as HTML: quality, pictures, figures, training and config.

    Args:
        folder: the workdir.
    """
    evaluation = _read(folder / "evaluation.json")
    title = f"{_KINDS.get(cfg.task, cfg.task)} of {cfg.data.name}"
    sweeps = sorted((folder / "sweeps").glob("*.png"))
    config = json.dumps(cfg.to_dict(), indent=2)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _describe_choices(cfg),
        _format_quality(evaluation, folder),
        _format_pictures(cfg, folder),
        _format_evaluation(evaluation),
        *[format_image(path.read_bytes(), f"sweep {path.stem}", "plot") for path in sweeps],
        _format_training(folder),
        _format_next(cfg, folder) if cfg.task == "diffusion" else "",
        fold(
            "The papers' figures",
            '<p class="faint">On other data and with the features of Inception: for orientation. '
            f"They do not compare with the figures above.</p>{format_pairs(PAPERS)}",
        ),
        fold("The config of this run", f"<pre>{html.escape(config)}</pre>"),
    ]
    return make_page(title, "".join(parts))


def _read(path: Path) -> JsonObject:
    """Read a JSON file of the run; empty if there is none."""
    found: JsonObject = json.loads(path.read_text()) if path.exists() else {}
    return found


def _paragraph(text: str, kind: str = "faint") -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>'


def _format_command(about: str, command: str) -> str:
    return f'<p>{html.escape(about)}</p><pre class="command">{html.escape(command)}</pre>'


def _describe_choices(cfg: ConfigDict) -> str:
    """Say in a sentence what the network predicts and how noise grows; nothing for other tasks."""
    if cfg.task not in ("diffusion", "distillation", "controlnet"):
        return ""
    name = cfg.parameterization.name
    what = f"{_PREDICTIONS[name]} ({name})" if name in _PREDICTIONS else name
    sides = cfg.data.image_size
    size = "x".join(map(str, (sides, sides) if isinstance(sides, int) else sides))
    return _paragraph(
        f"Its network predicts {what}; noise grows by the {cfg.schedule.name} schedule. "
        f"Pictures have {size} pixels."
    )


def _format_quality(evaluation: JsonObject, folder: Path) -> str:
    """Format how good the model is: a sentence, and a bar between untrained and real."""
    scale = figures.read_scale(evaluation)
    if scale is None:
        if "distance" in evaluation or "inception" in evaluation:
            return ""
        command = f"{_find_python()} -m experiments.evaluate --workdir={_quote(folder)}"
        return _format_command("Not evaluated yet. This measures it:", command)
    return (
        _paragraph(figures.describe_quality(scale), "lead")
        + format_bar(scale)
        + _paragraph(figures.describe_sizes(evaluation))
    )


def _format_pictures(cfg: ConfigDict, folder: Path) -> str:
    """Format the newest samples beside real pictures, their way from noise, and older previews."""
    found = sorted((folder / "samples").glob("*.png"), key=lambda p: p.stat().st_mtime)
    films = [path for path in found if path.name.endswith(FILM)]
    previews = [path for path in found if path.stem.isdigit()]
    finals = [path for path in found if path not in films and path not in previews]
    real = folder / SHOWN_REAL
    chosen = (finals or previews)[-1:]
    if not chosen:
        return ""
    beside = [format_image(path.read_bytes(), _name_samples(path)) for path in chosen]
    if real.exists():
        beside.append(format_image(real.read_bytes(), f"Real pictures of {cfg.data.name}."))
    parts = [f'<h2>Pictures</h2><div class="pair">{"".join(beside)}</div>']
    if films:
        text = (
            "From noise to picture, left to right. Each sample takes two rows. The upper one shows "
            "the state, which begins as pure noise. The lower one shows the picture that the "
            "network expected at that moment. It is grey before the first step."
        )
        parts.append(format_image(films[-1].read_bytes(), text))
    older = previews if finals else previews[:-1]
    if older:
        ends = list(dict.fromkeys((older[0], older[-1])))
        shown = "".join(format_image(path.read_bytes(), _name_samples(path)) for path in ends)
        parts.append(fold("What it drew in training", f'<div class="pair">{shown}</div>'))
    return "".join(parts)


def _name_samples(path: Path) -> str:
    """Say in a sentence what a picture in the folder samples/ shows."""
    if path.stem.isdigit():
        return f"Drawn at step {int(path.stem):,} of training."
    named = _SAMPLES.fullmatch(path.stem)
    if named is None:
        return f"Samples: {path.stem}."
    sampler, steps, trained, seed = named.groups()
    return (
        f"Samples, drawn in {steps} steps of {sampler} after {int(trained):,} steps of training, "
        f"with seed {seed}."
    )


def _format_evaluation(evaluation: JsonObject) -> str:
    """Format what evaluation.json holds as a table with a line about each figure."""
    if not evaluation:
        return ""
    parts = ["<h2>Figures</h2>"]
    baselines = evaluation.get("baselines", {})
    for about, found in (
        ("", {**evaluation, **baselines}),
        ("<p>With the features of Inception:</p>", evaluation.get("inception", {})),
        ("<p>How well pictures obey their captions:</p>", evaluation.get("captions", {})),
    ):
        if rows := figures.explain(found):
            parts.append(f'{about}<div class="wide">{format_explained(rows)}</div>')
    return "".join(parts)


def _format_training(folder: Path) -> str:
    """Format the training: its time and machine, the loss, the last line of the log."""
    rows = read_json_lines(folder / "metrics.jsonl")
    parts = ["<h2>Training</h2>"]
    if summary := _read(folder / SUMMARY):
        parts.append(_paragraph(figures.describe_training(summary), ""))
    if rows:
        text = "The loss of training, on a logarithmic axis. It is a mean over all noise levels."
        parts += [
            format_image(plot_losses(rows), text, "plot"),
            f'<div class="wide">{format_explained(figures.explain(rows[-1]))}</div>',
        ]
    return "".join(parts)


def list_commands(cfg: ConfigDict, folder: Path) -> dict[str, str]:
    """List what to try with a diffusion model: commands by what they answer.

    Args:
        folder: the workdir.
    """
    run, other = _quote(folder), _quote(folder.with_name(f"{folder.name}-other"))
    change = "parameterization.name=" + ("eps" if cfg.parameterization.name == "v" else "v")
    start = f"{_find_python()} -m experiments."
    return {
        "How many steps does it need? Draw the same pictures in 5, 10, 20 and 50, a row each.": (
            f"{start}sample --workdir={run} --sampler=ddim --rows=steps=5,10,20,50 --num=10"
        ),
        "Does random noise between the steps help? Measure DDIM with eta 0 and 1.": (
            f"{start}evaluate --workdir={run} --sampler=ddim --sweep=eta=0,1 --sweep=steps=10,50"
        ),
        "Does the network learn faster if it predicts something else? Train again, and compare.": (
            f"{start}train --config=diffjax/config/store.py:{run}/config.json "
            f"--workdir={other} --config.{change}"
        ),
    }


def _format_next(cfg: ConfigDict, folder: Path) -> str:
    """Format the commands to try next."""
    commands = list_commands(cfg, folder)
    if not cfg.eval.features:  # there is no distance to sweep
        commands = {about: line for about, line in commands.items() if "--sweep" not in line}
    lines = "".join(_format_command(about, line) for about, line in commands.items())
    return f"<h2>What to try next</h2>{lines}"


def _quote(path: Path) -> str:
    return shlex.quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))


def _find_python() -> str:
    """Find how this Python is called here: relative, if it lies below the current folder."""
    path = os.path.relpath(sys.executable) if sys.executable else ""
    return "python" if not path or path.startswith("..") else shlex.quote(path)


def format_comparison(folders: list[Path], metric: str, mode: str) -> tuple[str, str]:
    """Format a page that compares runs, and a table of them for the terminal.

    Args:
        folders: workdirs.
        metric: by which the best run is chosen.
        mode: min or max, whether the smallest or the largest value is best.

    Returns:
        The page as HTML, and the table as text.

    Raises:
        ConfigError: no run has the metric.
    """
    rows = comparison.collect_rows(folders)
    # Runs without the metric are in the table, but cannot win.
    winner = comparison.find_best(rows, metric, mode)
    if winner is None:
        known = sorted({key for row in rows for key in row})
        raise ConfigError(f"no run has a finite {metric!r}; there are {', '.join(known)}")
    title = f"{len(rows)} runs by {metric}"
    drawn = [m for m in dict.fromkeys(("loss", metric)) if any(m in row for row in rows)]
    pictures = "".join(
        format_image(comparison.plot_curves(folders, m), figures.EXPLANATIONS.get(m, m), "plot")
        for m in drawn
    )
    best = f"<p>Best by {html.escape(metric)} ({mode}): <b>{html.escape(winner['run'])}</b></p>"
    table = f'<div class="wide">{format_html_table(rows, winner)}</div>'
    page = make_page(title, f"<h1>{html.escape(title)}</h1>{best}{table}{pictures}")
    value = format_value(winner[metric])
    return page, f"{format_table(rows)}\nbest by {metric} ({mode}): {winner['run']} with {value}"
