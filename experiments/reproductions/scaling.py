"""Training Stable Diffusion 1.5, XL and ControlNet on 8, 64 and 256 TPU chips, compiled for them.

Memory, operations and collectives of a chip, beside maxdiffusion's training step.
"""

from __future__ import annotations

from pathlib import Path

from diffjax.types import JsonObject
from experiments.reproductions.claims import Claim, read_file
from experiments.reproductions.pieces import Piece
from experiments.reproductions.verdicts import judge_range, state_exactly

# The config file with the paper's own settings.
CONFIG = "stable_diffusion"
# The models by their names in rows, and what the page calls them.
CASES = {
    "sd15": "Stable Diffusion 1.5, 512 px",
    "sdxl": "XL, 1024 px",
    "controlnet_sd15": "ControlNet of 1.5, 512 px",
}
# Chips of each topology.
SLICES = {"v5e:2x4": 8, "v5e:8x8": 64, "v5e:16x16": 256}
# Bytes of a GiB.
GIB = 2**30
# GiB of a chip.
LIMIT = 15.75
# For the contradiction.
_WHY = (
    "With whole weights every chip keeps parameters, their average, both moments and gradients, "
    "which alone exceed its memory. Sharding them, as in the first row, is the way out."
)
# File of maxdiffusion's figures.
THEIRS = "scaling-maxdiffusion.json"
# The row that is compared with maxdiffusion.
FIRST = "sd15/v5e:2x4/fsdp8/batch4"
# The row of Stable Diffusion XL.
XL = "sdxl/v5e:2x4/fsdp8/batch1"
# The row whose parameters are whole on every chip.
WHOLE = "sd15/v5e:2x4/fsdp1/batch4"
# The row with twice the images that fit maxdiffusion's step, by the line through its figures.
LARGE = "sd15/v5e:2x4/fsdp8/batch22"
# Columns of the table of collectives.
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


def _make_piece(case: str) -> Piece:
    """Make the piece that compiles the rows of a model for all slices.

    Args:
        case: a key of `CASES`.
    """
    file = f"scaling-{case}.json"
    command = ("benchmarks.plan_diffusers", f"--only={case}/", f"--out={{runs}}/{file}")
    return Piece(f"scaling-{case}", (command,), {file: f"data/{file}"}, 25, needs="libtpu")


PIECES = tuple(map(_make_piece, CASES))


def _read_rows(data: Path) -> dict[str, JsonObject]:
    """Read the figures of all rows by their names."""
    return {k: row for case in CASES for k, row in read_file(data / f"scaling-{case}.json").items()}


def _read_maxdiffusion(data: Path) -> dict[str, JsonObject]:
    """Read the figures of maxdiffusion; empty if they were not made."""
    path = data / THEIRS
    return read_file(path) if path.exists() else {}


def _is_fitting(row: JsonObject) -> bool:
    """Whether the step of a row fits the memory of a chip.

    Args:
        row: figures of one compilation, see `experiments.benchmarks.plan_diffusers`.
    """
    return "needed_bytes" not in row


def _format_memory(row: JsonObject) -> str:
    """Format the peak memory of a row in GiB, or how much it would need."""
    if _is_fitting(row):
        return f"{row['peak_bytes'] / GIB:.2f}"
    return f"does not fit ({row['needed_bytes'] / GIB:.2f})"


def _format_least(row: JsonObject) -> str:
    """Format what a step needs before any activation: state and gradients.

    Gradients are as large as the parameters. Both must fit beside whatever the layers keep.
    """
    state, gradients = row["state_bytes"] / GIB, row["parameter_bytes"] / GIB
    return f"state {state:.2f} GiB and gradients {gradients:.2f} GiB of 15.75"


def _sum_traffic(row: JsonObject) -> float:
    """Sum the GiB of all collectives of a row."""
    return sum(entry["bytes"] for entry in row["collectives"].values()) / GIB


def _list_flops(rows: dict[str, JsonObject], case: str) -> list[float]:
    """List the operations of a chip on the slices that a model fits.

    Args:
        rows: figures by name.
        case: a key of `CASES`.
    """
    return [
        row["flops"]
        for name, row in rows.items()
        if name.startswith(f"{case}/") and _is_fitting(row) and name != LARGE
    ]


def judge_claims(data: Path) -> list[Claim]:
    """Judge memory, what is sharded, and whether a chip does the same work in a larger slice.

    Nothing is run: figures are those of the compiled steps. Maxdiffusion's step joins them if it
    was compiled.

    Args:
        data: folder of the files that the pieces left.
    """
    rows = _read_rows(data)
    xl = rows[XL]
    sharded = [row["sharded"] for name, row in rows.items() if _is_fitting(row) and name != WHOLE]
    ratios = [max(found) / min(found) for case in CASES if (found := _list_flops(rows, case))]
    found = [
        *_judge_first(rows, data),
        _state(
            "1.5 on v5e:2x4 with whole weights and 4 images on every chip fits 15.75 GiB",
            _find_need(rows[WHOLE]) / GIB,
            LIMIT,
            f"{_format_memory(rows[WHOLE])}: {_format_least(rows[WHOLE])}",
        ),
        _state(
            "XL at 1024 px trains on v5e:2x4, in 15.75 GiB",
            _find_need(xl) / GIB,
            LIMIT,
            f"{_format_memory(xl)} GiB",
        ),
        _state(
            "at most 1 % of the trained parameters are not sharded",
            1 - min(sharded),
            0.01,
            f"{100 * min(sharded):.2f} % or more are sharded",
        ),
        _state(
            "operations of a chip are the same in 8, 64 and 256 chips, within 1 %",
            max(ratios),
            1.01,
            f"largest over smallest {max(ratios):.4f}",
        ),
    ]
    return found


def _judge_first(rows: dict[str, JsonObject], data: Path) -> list[Claim]:
    """Judge the step of Stable Diffusion 1.5 on 8 chips: its memory, or since ``auto`` its work.

    Figures without ``remat`` were compiled with blocks computed again, to save memory.

    Args:
        rows: figures by name.
        data: folder of the files that the pieces left.
    """
    first = rows[FIRST]
    where = "1.5 on v5e:2x4, sharded over 8, 4 images a chip"
    if "remat" in first:
        work = f"{first['flops'] / 1e12:.2f} TFLOP, computed again: {first['remat']}"
        found = [_state(f"{where}: at most 7.3 TFLOP a chip", first["flops"] / 1e12, 7.3, work)]
        if LARGE in rows:
            text = "22 images a chip fit as well, twice as many as fit maxdiffusion's step"
            shown = f"{_format_memory(rows[LARGE])} GiB"
            found.append(_state(text, _find_need(rows[LARGE]) / GIB, LIMIT, shown))
        return found
    shown = f"{_format_memory(first)} GiB, with an average of the weights"
    found = [_state(f"{where}: at most 5.5 GiB a chip", _find_need(first) / GIB, 5.5, shown)]
    # Maxdiffusion's row with the same mesh and batch joins, if it was compiled.
    others = [row["peak_bytes"] for row in _read_maxdiffusion(data).values() if _is_comparable(row)]
    if others and _is_fitting(first):
        text = "that is less than maxdiffusion's step needs, which keeps no average"
        figures = f"{_format_memory(first)} against {min(others) / GIB:.2f} GiB"
        found.append(_state(text, first["peak_bytes"] / min(others), 1.0, figures))
    return found


def _state(text: str, value: float, most: float, figures: str) -> Claim:
    """State whether a figure of compiled programs is at most some value."""
    effect = state_exactly(value)
    return Claim(text, judge_range(effect, high=most), effect, figures, _WHY)


def _find_need(row: JsonObject) -> float:
    """Find the bytes of a chip that a step needs, whether it has them or not."""
    return float(row["peak_bytes"] if _is_fitting(row) else row["needed_bytes"])


def _is_comparable(row: JsonObject) -> bool:
    """Whether a row of maxdiffusion can be compared with `FIRST`."""
    return _is_fitting(row) and row["data"] == 1 and row["batch_per_chip"] == 4


def _format_table(rows: dict[str, JsonObject]) -> str:
    """Format the figures of all rows."""
    automatic = _is_automatic(rows)
    heads = ["", "slice", "data x fsdp", "images a chip", "peak GiB", "of it state", "TFLOP",
             "memory traffic GiB", "collectives GiB", "sharded", "compiled in"]  # fmt: skip
    heads += ["computed again"] if automatic else []
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        case, where, mesh, batch = name.split("/")
        fsdp = int(mesh.removeprefix("fsdp"))
        cells = [
            CASES[case],
            where,
            f"{SLICES[where] // fsdp} x {fsdp}",
            batch.removeprefix("batch"),
            _format_memory(row),
            f"{row['state_bytes'] / GIB:.2f}",
        ]
        if _is_fitting(row):
            cells += [
                f"{row['flops'] / 1e12:.2f}",
                f"{row['bytes_accessed'] / GIB:.1f}",
                f"{_sum_traffic(row):.2f}",
                f"{100 * row['sharded']:.2f} %",
                f"{row['compile_seconds']:.0f} s",
                *([row.get("remat", "blocks")] if automatic else []),
            ]
        lines.append(f"| {' | '.join(cells + ['-'] * (len(heads) - len(cells)))} |")
    return "\n".join(lines)


def _is_automatic(rows: dict[str, JsonObject]) -> bool:
    """Whether rows were compiled with what fits computed again; older ones had all blocks."""
    return any("remat" in row for row in rows.values())


def _format_collectives(rows: dict[str, JsonObject]) -> str:
    """Format the collectives of the rows that fit: GiB, and how often they run."""
    lines = [f"| | slice | {' | '.join(COLLECTIVES)} |", "|---" * (2 + len(COLLECTIVES)) + "|"]
    for name, row in rows.items():
        if not _is_fitting(row):
            continue
        case, where, *_ = name.split("/")
        found = [row["collectives"].get(kind, {"bytes": 0, "count": 0}) for kind in COLLECTIVES]
        cells = [f"{f['bytes'] / GIB:.2f} in {f['count']:g}" if f["count"] else "-" for f in found]
        lines.append(f"| {CASES[case]} | {where} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_maxdiffusion(data: Path) -> str:
    """Format the section about maxdiffusion; empty without its figures."""
    theirs = _read_maxdiffusion(data)
    if not theirs:
        return ""
    lines = ["| maxdiffusion, 1.5 | images a chip | attention | peak GiB | of it state | sharded |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in theirs.values():
        mesh = f"data {row['data']}, fsdp {row['chips'] // row['data']}"
        cells = (mesh, f"{row['batch_per_chip']}", row["attention"], _format_memory(row),
                 f"{row['state_bytes'] / GIB:.2f}", f"{100 * row['sharded']:.2f} %")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    version = next(iter(theirs.values()))["commit"]
    return f"""
## maxdiffusion

Its step of Stable Diffusion 1.5 at commit {version}, with its configuration, rules and optimiser,
for v5e:2x4 on the same latents and text features, compiled in the same way
(`python -m experiments.benchmarks.baseline_maxdiffusion`). It keeps no average of the weights and
computes nothing again in the backward pass. Its flash attention works in blocks of 512 here: with
the 2048 of its configuration the kernel does not compile for these chips.

{chr(10).join(lines)}
"""


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    rows = _read_rows(data)
    how = (
        "as little computed again in the backward pass as fits, attention by the fused kernel"
        if _is_automatic(rows)
        else "blocks computed again in the backward pass, attention in chunks"
    )
    return f"""Nothing was run on these chips: the training step was compiled for them by
PyPI's libtpu on two CPU cores, at effort O0. That says what fits; a program compiled at full effort
may need less. The step is that of the trainer: AdamW and an average of the weights in float32,
computation in bfloat16, {how}, clipping
by the norm, on stored latents and text features. ControlNet's base is frozen and sharded as well.

A chip has 15.75 GiB. Operations are those of all products, of which some are computed twice.

{_format_table(rows)}

## Collectives of a chip

GiB, and how often they run in a step. Products with sharded weights are cut into pieces that go
round the chips, which is what the many permutations are.

{_format_collectives(rows)}
{_format_maxdiffusion(data)}"""
