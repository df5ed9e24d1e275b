"""The page docs/results/speed.md, from the figures of the speed suites."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from diffjax.types import JsonObject
from experiments.benchmarks.sides.rows import OURS, PEERS, ROWS, SUITES

GIB = 2**30
TITLES = {
    "cpu": "CPU",
    "startup": "Start-up",
    "gpu": "GPU",
    "tpu": "TPU",
}
HEAD = """# Speed

Written by `python -m experiments.benchmarks.speed --page` from `data/speed-*.json`. These files are
written by

    make peers
    python -m experiments.benchmarks.speed --suite=cpu --json=docs/results/data/speed-cpu.json

and likewise for the suites startup, gpu and tpu.

A ratio is the median time of diffjax over that of a peer: below 1, diffjax is faster. The sides of
a row are processes that take turns; the quartiles of the ratios of single turns are in brackets.
Weights and inputs are the same, and the outputs of the networks agree to the error given. Memory is
the peak of the whole process after the first call, or on accelerators that of the device. "First
call" includes compilation. FLOPs are those of products and convolutions; their share of the peak is
that of the fastest product of two matrices in the same file.
"""


def format_line(name: str, row: JsonObject) -> str:
    """Format a row as one line for the terminal."""
    parts = [f"{side} {_median(found):.4g} s" for side, found in row["sides"].items()]
    parts += [f"ours/{peer} {ratio:.3f}" for peer, ratio in row["ratios"].items()]
    parts += [f"{side} not measured ({why})" for side, why in row["missing"].items()]
    if row["errors"]:
        parts.append(f"error {max(row['errors'].values()):.1e}")
    return f"{name}: " + ", ".join(parts)


def make_page(data: Path) -> str:
    """Make the page.

    Args:
        data: folder of the files speed-SUITE.json; a suite without a file is not measured.
    """
    parts = [HEAD]
    for suite in ("cpu", "startup", "gpu", "tpu"):
        path = data / f"speed-{suite}.json"
        found = json.loads(path.read_text()) if path.exists() else {"tiny": True, "rows": {}}
        parts.append(_make_section(suite, {} if found["tiny"] else found["rows"]))
    return "\n".join(parts)


def _make_section(suite: str, rows: dict[str, JsonObject]) -> str:
    """Make the section of a suite."""
    assert suite in SUITES
    lines = [f"## {TITLES[suite]}", ""]
    if not rows:
        wanted = [row.title for row in ROWS.values() if row.suite == suite]
        return "\n".join([*lines, f"Not measured: {'; '.join(wanted)}.", ""])
    lines += _describe_machines(rows)
    lines += [
        "| row | peer | ratio (quartiles) | goal | diffjax s | peer s | memory ratio | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        lines += _make_lines(row)
    left = [row.title for name, row in ROWS.items() if row.suite == suite and name not in rows]
    lines += ["", f"Not measured: {'; '.join(left)}."] if left else []
    return "\n".join([*lines, "", *_make_own_table(rows), ""])


def _describe_machines(rows: dict[str, JsonObject]) -> list[str]:
    """Describe the machines and versions that the rows were measured with."""
    said = []
    for row in rows.values():
        m = row["machine"]
        load = max(row["load_average"])
        versions: dict[str, str] = {}
        for found in row["sides"].values():
            versions |= {f"{k} {v}": "" for k, v in found.get("versions", {}).items()}
        device = row["sides"].get(OURS, {}).get("device", "")
        said.append(
            (f"{m['processor']}, {m['instructions']}, {m['cores']} cores, {device}", load, versions)
        )
    machines = sorted({machine for machine, _, _ in said})
    versions = sorted({version for _, _, v in said for version in v})
    loads = [load for _, load, _ in said]
    return [
        f"Machine: {'; '.join(machines)}. Load average {min(loads):.1f} to {max(loads):.1f}. "
        f"Versions: {', '.join(versions)}.",
        "",
    ]  # fmt: skip


def _make_lines(row: JsonObject) -> list[str]:
    """Make the lines of the table for a row, one for each peer."""
    ours = row["sides"].get(OURS)
    lines = []
    for peer, ratio in row["ratios"].items():
        low, high = row["spreads"][peer]
        goal = row["goals"].get(peer)
        verdict = "-" if goal is None else f"{goal:.2f}: {'met' if ratio <= goal else 'not met'}"
        error = f"{row['errors'][peer]:.0e}" if peer in row["errors"] else "-"
        lines.append(
            f"| {row['title']} | {PEERS[peer]} | {ratio:.2f} ({low:.2f} to {high:.2f}) | {verdict} "
            f"| {_median(ours):.3g} | {_median(row['sides'][peer]):.3g} "
            f"| {row['memory_ratios'][peer]:.2f} | {error} |"
        )
    for peer, why in row["missing"].items():
        lines.append(
            f"| {row['title']} | {PEERS.get(peer, peer)} | not measured: {why} | | | | | |"
        )
    return lines


def _make_own_table(rows: dict[str, JsonObject]) -> list[str]:
    """Make the table of what diffjax alone says: compilation, operations, memory."""
    ours = {row["title"]: row["sides"][OURS] for row in rows.values() if OURS in row["sides"]}
    rates = [s["flops"] / min(s["seconds"]) for s in ours.values() if s.get("flops")]
    products = [
        row["sides"][OURS]["flops"] / _median(side)
        for name, row in rows.items()
        if name.endswith("matmul") and OURS in row["sides"]
        for side in row["sides"].values()
    ]
    peak = max([*products, *rates]) if products else None
    lines = [
        "| diffjax | compile s | first call s | GFLOP | share of the peak | memory GiB |",
        "|---|---|---|---|---|---|",
    ]
    for title, side in ours.items():
        compiled = side.get("compile_seconds")
        flops = side.get("flops")
        share = flops / _median(side) / peak if flops and peak else None
        lines.append(
            f"| {title} | {'-' if compiled is None else f'{compiled:.1f}'} "
            f"| {side['first_call_seconds']:.2f} | {'-' if not flops else f'{flops / 1e9:.4g}'} "
            f"| {'-' if share is None else f'{100 * share:.0f} %'} "
            f"| {side['peak_bytes'] / GIB:.2f} |"
        )
    return lines


def _median(side: JsonObject) -> float:
    """Return the median of the seconds of a side."""
    return float(statistics.median(side["seconds"]))
