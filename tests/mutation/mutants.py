"""Mutants of the maths: one operator, number, comparison or keyword of a source file is changed.

The operators are those of cosmic-ray. A mutant is left out if the program does not change (it lies
in a type annotation or a docstring), if it changes the text of an error only, or if it puts an
operator on bits in the place of an arithmetic one, which floats can only answer by a TypeError.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

MODULES = (
    *(
        f"diffjax/{name}.py"
        for name in (
            "schedules",
            "grids",
            "parameterization",
            "guidance",
            "losses/distances",
            "losses/noise",
            "losses/pairing",
            "losses/times",
            "losses/weights",
            "likelihood",
            "control",
            "lora",
            "train/optimizer",
            "train/step",
        )
    ),
    *sorted(p.as_posix() for p in Path("diffjax/samplers").glob("[!_]*.py")),
)
# The first two need names of variables to put in place of others.
SKIPPED = ("VariableReplacer", "VariableInserter")
BITS = ("RShift", "LShift", "BitOr", "BitAnd", "BitXor")


class Mutant(NamedTuple):
    """One change of one file.

    Attributes:
        module: path of the source file.
        line: the first changed line, from 1.
        last: the last changed line.
        operator: cosmic-ray's name of the change.
        before: the changed lines as they are, stripped.
        after: the same lines changed.
        source: the whole changed file.
    """

    module: str
    line: int
    last: int
    operator: str
    before: str
    after: str
    source: str


class Change(NamedTuple):
    """The ``occurrence``-th place of a file where an operator applies."""

    operator: str
    occurrence: int


def find_changes(source: str) -> dict[tuple[int, int], list[Change]]:
    """All that cosmic-ray can change in a file, by position (line, column)."""
    nodes = list(ast_nodes(get_ast(source)))
    found: dict[tuple[int, int], list[Change]] = {}
    for name in filter(_is_used, plugins.operator_names()):
        operator, occurrence = plugins.get_operator(name)(), 0
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                found.setdefault(start, []).append(Change(name, occurrence))
                occurrence += 1
    return found


def _is_used(name: str) -> bool:
    *_, before, after = f"_{name}".split("_")
    return not name.endswith(SKIPPED) and (after not in BITS or before in BITS)


class _Program(ast.NodeTransformer):
    """Removes what does not run, or only says what went wrong."""

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise(None, None)


def parse_program(source: str) -> str:
    """What a file does: its syntax tree without annotations and texts of errors."""
    return ast.dump(_Program().visit(ast.parse(source)))


def make_mutant(module: str, source: str, change: Change) -> Mutant | None:
    """The mutant of a change, or None if it does not change the program."""
    operator = plugins.get_operator(change.operator)()
    changed = mutate_code(source, operator, change.occurrence)
    try:
        if changed is None or parse_program(changed) == parse_program(source):
            return None
    except SyntaxError:
        return None
    old, new = source.splitlines(), changed.splitlines()
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    _, first, last, other, end = next(block for block in blocks if block[0] != "equal")
    name = change.operator.removeprefix("core/")
    before, after = (
        " ".join(" ".join(lines).split()) for lines in (old[first:last], new[other:end])
    )
    return Mutant(module, first + 1, last, name, before, after, changed)


def sample_mutants(seed: int, count: int, modules: tuple[str, ...] = MODULES) -> Iterator[Mutant]:
    """``count`` random mutants: positions are drawn without repetition, then one change of each."""
    rng = random.Random(seed)
    sources = {module: Path(module).read_text() for module in modules}
    places = [
        (module, changes)
        for module, source in sources.items()
        for _, changes in sorted(find_changes(source).items())
    ]
    rng.shuffle(places)
    drawn = (make_mutant(name, sources[name], rng.choice(changes)) for name, changes in places)
    return itertools.islice((mutant for mutant in drawn if mutant is not None), count)
