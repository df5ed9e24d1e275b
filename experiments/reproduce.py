"""Reproduce a paper's results on one machine or an accelerator, or print how to at its own scale.

    python -m experiments.reproduce --paper=ddim --list
    python -m experiments.reproduce --paper=ddim
    python -m experiments.reproduce --paper=ddim --only=ddim,reconstruction
    python -m experiments.reproduce --pages
    python -m experiments.reproduce --paper=ddim --scale=gpu
    python -m experiments.reproduce --paper=ddpm --scale=paper

Pieces that are done are not run again; interrupted ones go on. Everything worth keeping is copied
to docs/results, from which the pages are written: PAPER.md and README.md, every claim with its
verdict. ``--scale=gpu`` runs all of it at ten times the size, into runs/gpu; where JAX finds no
accelerator, it prints the commands that it would run.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from absl import flags, logging

from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.config.variants import load_module
from experiments import plan
from experiments.reproductions import PAPERS, enlarging, pieces, results
from experiments.reproductions.claims import format_verdicts
from experiments.reproductions.pieces import Piece
from experiments.reproductions.verdicts import RULE

# Data sets of no paper, whose variants are left out of the paper's own settings.
SMALL = ("digits", "fashion_mnist", "fashion_mnist14", "shapes")

PAPER = flags.DEFINE_list(
    "paper", [], f"Papers to reproduce, of {', '.join(PAPERS)}; all if not set."
)
SCALE = flags.DEFINE_enum(
    "scale",
    "machine",
    ["machine", "gpu", "paper"],
    "Settings for one machine, ten times their size for an accelerator, or those of the paper, "
    "which are only printed.",
)
RUNS = flags.DEFINE_string(
    "runs",
    None,
    "Folder of the runs of the reproduction; if not set, runs/reproduce, or runs/gpu for "
    "--scale=gpu.",
)
RESULTS = flags.DEFINE_string(
    "results",
    None,
    "Folder of the pages, data and models; if not set, docs/results, or runs/gpu/results for "
    "--scale=gpu.",
)
ONLY = flags.DEFINE_list(
    "only", [], "Names of the pieces to run; all that are not done if not set."
)
LIST = flags.DEFINE_bool(
    "list", False, "List the pieces, their commands, and whether they are done."
)
PAGES = flags.DEFINE_bool("pages", False, "Only write the pages, from the data that is there.")


def select_papers() -> dict[str, ModuleType]:
    """Select the papers that the flags name, or all.

    Returns:
        Modules of `experiments.reproductions` by the name of the paper.

    Raises:
        UsageError: an unknown paper or piece; the message lists the choices.
    """
    if unknown := set(PAPER.value) - set(PAPERS):
        raise UsageError(f"unknown papers {sorted(unknown)}; choose from {list(PAPERS)}")
    papers = {name: PAPERS[name] for name in PAPER.value or PAPERS}
    known = [piece.name for paper in papers.values() for piece in paper.PIECES]
    if unknown := set(ONLY.value) - set(known):
        raise UsageError(f"unknown pieces {sorted(unknown)}; choose from {known}")
    return papers


def select_pieces(papers: dict[str, ModuleType]) -> dict[str, tuple[Piece, ...]]:
    """Select the pieces of papers at the scale of the flags, by the name of the paper."""
    found = {name: tuple(paper.PIECES) for name, paper in papers.items()}
    if SCALE.value == "gpu":
        found = {name: tuple(map(enlarging.enlarge_piece, own)) for name, own in found.items()}
    return found


def describe_paper_scale(name: str) -> str:
    """Describe a paper's own settings: commands, sizes and costs, from its config file.

    The figures that the paper reports with them are in the docstring of that file. Nothing is run:
    the sizes come from shapes.

    Args:
        name: of the paper, a key of `PAPERS`.
    """
    path = Path("configs") / f"{getattr(PAPERS[name], 'CONFIG', name)}.py"
    module = load_module(str(path))
    lines = [(module.__doc__ or "").strip(), ""]
    for variant, make in module.VARIANTS.items():
        cfg = make()
        # Variants for one machine are no settings of the paper.
        if cfg.data.name in SMALL:
            continue
        found = plan.make_plan(cfg, flops=False)
        images = cfg.train.steps * cfg.data.batch_size
        measures = " --metrics=fid,is --inception=FILE" if cfg.task == "diffusion" else ""
        lines += [
            f"{variant}: {found['parameters']:,} parameters, {images / 1e6:.1f}M images",
            f"    python -m experiments.train --config={path}:{variant} --workdir=runs/{variant}",
            f"    python -m experiments.evaluate --workdir=runs/{variant}{measures}",
            f"    python -m experiments.plan --config={path}:{variant}",
        ]
    return "\n".join(lines)


def format_pages(folder: Path, note: str = "") -> dict[str, str]:
    """Format PAPER.md for every paper whose files are all there, and README.md with every claim.

    Args:
        folder: of the results; the files are in its folder data.
        note: a paragraph that stands above the claims of every page.

    Returns:
        Texts by the names of their files.
    """
    pages, sections = {}, []
    for name, paper in PAPERS.items():
        # A page needs all files of its paper: a part of them would judge nothing.
        found = results.read_results(name, folder)
        if found.missing:
            sections.append(f"## {name}\n\n{found.title}\n\nNot run: {', '.join(found.missing)}.")
            continue
        body, verdicts = paper.format_page(folder / "data"), format_verdicts(found.claims)
        command = f"    python -m experiments.reproduce --paper={name}"
        pages[f"{name}.md"] = (
            f"# {found.heading}\n\nWritten from `data/` by\n\n{command}\n\n{note}"
            f"{verdicts}\n\n{RULE}\n\n{body}"
        )
        sections.append(f"## [{name}]({name}.md)\n\n{found.title}\n\n{verdicts}")
    how = "Written by `python -m experiments.reproduce --pages`."
    head = f"# Results\n\n{how}\n\n{note}{RULE}\n\n"
    return {**pages, "README.md": head + "\n\n".join(sections) + "\n"}


def write_pages(folder: Path, note: str = "") -> None:
    """Write the pages of `format_pages` and the pictures that they show.

    Args:
        folder: of the results.
        note: see `format_pages`.
    """
    for name, text in format_pages(folder, note).items():
        (folder / name).write_text(text)
        # Pictures are drawn for the pages that have data.
        if name != "README.md" and (draw := getattr(PAPERS[Path(name).stem], "draw_plots", None)):
            draw(folder / "data")
    logging.info("pages written to %s", folder)


def main() -> None:
    """Run the pieces that are not done yet, and write the pages; or list or describe them.

    Raises:
        UsageError: an unknown paper or piece.
        RuntimeError: a command of a piece failed.
    """
    papers, large = select_papers(), SCALE.value == "gpu"
    runs = Path(RUNS.value or ("runs/gpu" if large else "runs/reproduce"))
    folder = Path(RESULTS.value or ("runs/gpu/results" if large else "docs/results"))
    if SCALE.value == "paper":
        print("\n\n".join(describe_paper_scale(name) for name in papers))
        return
    chosen = select_pieces(papers)
    missing = large and not PAGES.value and not enlarging.find_accelerator()
    if LIST.value or missing:
        print(*[enlarging.PLAN, ""] * missing, pieces.list_pieces(chosen, runs, folder), sep="\n")
        return
    every = [piece for own in chosen.values() for piece in own]
    if large:
        enlarging.copy_inputs(every, Path("docs/results"), folder)
    for piece in every:
        # Pieces that are named run, or all, or none with --pages.
        wanted = piece.name in ONLY.value if ONLY.value else not PAGES.value
        if wanted and not pieces.is_done(piece, folder):
            pieces.run_piece(piece, runs, folder)
    write_pages(folder, f"{enlarging.NOTE}\n\n" if large else "")


if __name__ == "__main__":
    run_flags.run(main)
