"""The table of faults: each one made to happen on this machine, and what has to hold afterwards.

    python -m tests.faults [--out=docs/results/faults.md]

Every row is one or more tests; they run here with the slow ones, which takes a while. A row passes
if all of its tests pass, and is marked as skipped if the machine does not let it happen (mounting a
small disk needs root).
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Fault(NamedTuple):
    """A row: what happens, what has to hold, and the tests that see to both."""

    what: str
    holds: str
    tests: tuple[str, ...]


CHECKPOINT, FAULTS, HOSTS = "test_checkpoint", "test_faults", "test_hosts"
LOOP, RESUME, SHARDING = "test_loop", "test_resume", "test_sharding"
TABLE = [
    Fault(
        "run 2N against N + resume + N",
        "bit-equal parameters, optimiser, average, log",
        (
            f"{LOOP}::test_stop_and_resume_is_bit_identical",
            f"{FAULTS}::test_the_real_model_resumes_bit_identically",
        ),
    ),
    Fault(
        "SIGKILL at 12 random times inside a save",
        "every committed step comes back; the end is bit-equal to an unbroken run's",
        (f"{FAULTS}::test_killed_at_random_moments_of_a_save",),
    ),
    Fault(
        "SIGKILL between writing, naming and deleting",
        "nothing lost, number of kept steps repaired",
        (
            f"{FAULTS}::test_killed_between_the_parts_of_a_save",
            f"{CHECKPOINT}::test_leftovers_of_a_crash_are_ignored_then_removed",
        ),
    ),
    Fault(
        "SIGTERM, SIGINT, SIGUSR2; one process, and each of two",
        "saved at the same step, exit code 128 + signal, no step lost",
        (
            f"{FAULTS}::test_signals_save_and_leave",
            f"{RESUME}::test_usr2_saves_and_resumes",
            f"{HOSTS}::test_a_signal_to_one_stops_both_and_one_alone_goes_on",
            f"{HOSTS}::test_two_processes_then_one_then_two_are_as_one",
        ),
    ),
    Fault(
        "more signals during the final save",
        "the checkpoint is whole",
        (f"{LOOP}::test_a_second_signal_during_the_final_save_changes_nothing",),
    ),
    Fault(
        "a bit flipped in each file",
        "noticed; the step before is used, and said",
        (
            f"{CHECKPOINT}::test_damage_to_any_file_falls_back_and_says_so",
            f"{RESUME}::test_damaged_frozen_weights_are_noticed_and_written_again",
        ),
    ),
    Fault(
        "truncated, deleted, empty and partial steps",
        "the same; never a silent restart",
        (
            f"{CHECKPOINT}::test_a_damaged_step_is_written_anew",
            f"{CHECKPOINT}::test_damaged_steps_do_not_crowd_out_good_ones",
            f"{CHECKPOINT}::test_no_silent_restart_when_all_are_damaged",
            f"{LOOP}::test_a_damaged_newest_checkpoint_costs_its_interval_only",
        ),
    ),
    Fault(
        "disk full (a tmpfs)",
        "message, exit code 1, old steps restore",
        (
            f"{CHECKPOINT}::test_full_disk",
            f"{FAULTS}::test_a_full_disk_ends_with_a_message",
            f"{LOOP}::test_full_disk_stops_the_log_loudly",
        ),
    ),
    Fault(
        "read-only workdir",
        "ends before step 1",
        (
            f"{FAULTS}::test_a_read_only_workdir_ends_with_a_message",
            f"{FAULTS}::test_a_workdir_that_cannot_be_written_ends_with_a_message",
        ),
    ),
    Fault(
        "NaN at step k",
        "never in a saved state; stop, skip or rollback",
        (
            f"{LOOP}::test_a_loss_that_is_not_finite_stops_the_run",
            f"{FAULTS}::test_a_loss_that_is_not_finite_ends_with_a_message",
            f"{RESUME}::test_steps_that_are_not_finite_can_be_skipped",
            f"{RESUME}::test_rolling_back_leaves_the_bad_batches_out",
            f"{RESUME}::test_rolling_back_ends_where_it_does_not_help",
        ),
    ),
    Fault(
        "SIGKILL of each of two processes",
        "the other exits within the heartbeat; a restart resumes",
        (f"{HOSTS}::test_the_survivor_of_a_killed_process_exits_and_a_restart_resumes",),
    ),
    Fault(
        "a process late or absent",
        "time-out that names it",
        (
            f"{HOSTS}::test_a_process_that_does_not_come_is_named",
            f"{HOSTS}::test_a_late_process_is_named_for_real",
        ),
    ),
    Fault(
        "8 to 4 to 1 to 8 devices; 2 to 1 to 2 processes",
        "arrays bit-equal, no batch twice or left out",
        (
            f"{SHARDING}::test_checkpoints_go_from_eight_devices_to_four_to_one_to_eight",
            f"{SHARDING}::test_four_devices_train_as_one_and_one_goes_on",
            f"{HOSTS}::test_two_processes_then_one_then_two_are_as_one",
        ),
    ),
    Fault(
        "another config, optimiser, shape, type or frozen weights",
        "refused with a diff unless overridden",
        (
            f"{RESUME}::test_another_config_is_refused_with_a_diff",
            f"{RESUME}::test_another_shape_needs_the_override",
            f"{RESUME}::test_other_frozen_weights_are_refused",
            f"{CHECKPOINT}::test_another_type_or_tree_is_refused",
        ),
    ),
    Fault(
        "two writers of one workdir",
        "the second is refused, and told who the first is",
        (f"{RESUME}::test_a_second_writer_is_refused_by_name",),
    ),
    Fault(
        "a metric that gets worse, latest and best kept",
        "the newest can be resumed, the best is not evicted",
        (
            f"{CHECKPOINT}::test_the_newest_can_be_resumed_however_the_metric_worsens",
            f"{CHECKPOINT}::test_the_best_stays_however_much_comes_after",
        ),
    ),
]


def outcomes() -> dict[str, list[tuple[str, float]]]:
    """Outcome and seconds of every case of the table's tests, by test."""
    wanted = sorted({name for fault in TABLE for name in fault.tests})
    nodes = ["tests/train/{}.py::{}".format(*name.split("::")) for name in wanted]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={out}", *nodes]
        subprocess.run(command, cwd=ROOT, stdout=sys.stderr)
        cases = list(ElementTree.parse(out).iter("testcase"))
    found: dict[str, list[tuple[str, float]]] = {name: [] for name in wanted}
    for case in cases:
        module = case.attrib["classname"].rpartition(".")[2]
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        name = f"{module}::{case.attrib['name'].partition('[')[0]}"
        found[name].append((kinds[0] if kinds else "passed", float(case.attrib["time"])))
    return found


def rows(found: dict[str, list[tuple[str, float]]]) -> Iterator[tuple[str, ...]]:
    """Number, fault, what holds, verdict, cases and seconds."""
    for number, fault in enumerate(TABLE, 1):
        cases = [case for name in fault.tests for case in found[name]]
        kinds = {kind for kind, _ in cases}
        bad = not cases or kinds & {"failure", "error"}
        verdict = "FAILS" if bad else "skipped" if "skipped" in kinds else "passes"
        seconds = f"{sum(time for _, time in cases):.0f}"
        yield str(number), fault.what, fault.holds, verdict, str(len(cases)), seconds


def main() -> int:
    head = ("#", "fault", "what holds", "verdict", "cases", "seconds")
    lines = [head, tuple("---" for _ in head), *rows(outcomes())]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    print(text)
    for argument in sys.argv[1:]:
        if argument.startswith("--out="):
            intro = (
                "# Faults\n\nWritten by `python -m tests.faults`; seconds on a busy machine.\n\n"
            )
            Path(argument.removeprefix("--out=")).write_text(intro + text)
    return int("FAILS" in text)


if __name__ == "__main__":
    sys.exit(main())
