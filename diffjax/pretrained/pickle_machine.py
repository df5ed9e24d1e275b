"""Run the program in a pickle on a machine that knows data only: no class, no call, no import.

A pickle is a program. The standard unpickler trusts it: it imports any class that the file names,
calls it with arguments of the file, and reserves the memory that it asks for. The machine here has
only the instructions that state dicts need. Its values are plain Python data, `Storage` and `View`,
and four names stand for the functions that build them. Work and memory are bounded by the number of
bytes of the pickle, which is itself bounded.

`pickles` uses it to read .pt, .bin and .ckpt files that the user has allowed.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any, NamedTuple

from diffjax.untrusted import AXES, show

PICKLE_BYTES = 64 * 2**20
STEPS = 2_000_000  # instructions, and entries that they go through
_KEY_LENGTH, _TUPLES = 8, 10_000  # entries of a key that is a tuple, and such keys
_LARGEST = 2**48  # of sizes, strides and lengths
_SMALL = 2**16  # numbers that a view may repeat, as of a constant that was expanded
_HASHED = 2**60  # integers below it are their own hash, so that none collide by design

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class Refused(Exception):
    """The pickle asks for more than a state dict needs."""


class Damaged(Exception):
    """The pickle is cut, or its instructions make no sense."""


class Storage(NamedTuple):
    """A flat array of the file, as the pickle describes it.

    Attributes:
        dtype: name of the NumPy type.
        key: name of the array in the file.
        length: number of entries.
    """

    dtype: str
    key: str
    length: int


class View(NamedTuple):
    """A tensor: a strided view of a storage, which lies within the length that the pickle states.

    Attributes:
        storage: the storage.
        offset: index of the first entry.
        size: the shape.
        stride: entries between neighbours on each axis.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def last(self) -> int:
        """Index of the last entry that the view reaches in its storage, or -1 if it has none."""
        if 0 in self.size:
            return -1
        return self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))


class _Name(NamedTuple):
    """A name that the pickle asks for and that is allowed. It stands for a builder of the
    machine.
    """

    module: str
    name: str


class _Mark:
    """Where a group of values begins on the stack."""


class _Bounded:
    """The bytes of one pickle in a file, at most `PICKLE_BYTES` of them.

    It has the two methods of a file that `pickletools.genops` calls.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = PICKLE_BYTES

    def read(self, count: int) -> bytes:
        self._use(count)
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(self._left + 1)
        self._use(len(line))
        return line

    def _use(self, count: int) -> None:
        if count > self._left:
            raise Refused(f"its pickle, or a text in it, has more than {PICKLE_BYTES} bytes")
        self._left -= count


class Machine:
    """Runs the pickles of one file, which share its storages.

    Each public method but `run` is one instruction, or one function that the pickle may call. An
    instruction takes the argument that stands beside it in the pickle, if any.

    Attributes:
        storages: the storages that the pickles named, by key.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._steps = self._tuples = 0
        self._stack: list[Any] = []
        self._memo: dict[int, object] = {}

    def run(self, file: IO[bytes]) -> object:
        """Return the value of the pickle that begins here, and leave the file at its end.

        Args:
            file: an open file; several pickles may follow each other in it.

        Raises:
            Refused: it has an instruction, name or size that no state dict needs.
            Damaged: it ends early, or its instructions make no sense.
        """
        self._stack, self._memo = [], {}
        try:
            for code, argument, _ in pickletools.genops(_Bounded(file)):  # type: ignore[arg-type]
                self._spend(1)
                if code.name == "STOP":
                    return self._pop()
                act = _ACTS.get(code.name)
                if act is None:
                    raise Refused(
                        f"it has the instruction {code.name}, which a state dict does not need"
                    )
                act(self, argument)
        # What genops raises where a pickle ends early, has an unknown code or a bad argument.
        except (ValueError, OverflowError, EOFError) as error:
            raise Damaged(f"its pickle is cut or damaged: {str(error)[:200]}") from error
        raise Damaged("its pickle has no end")

    def _spend(self, count: int) -> None:
        """Count instructions, or entries that one goes through.

        Raises:
            Refused: there were more than `STEPS`.
        """
        self._steps += count
        if self._steps > STEPS:
            raise Refused(f"its pickle has more than {STEPS} instructions")

    # ---- the stack ----

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _Mark:
            raise Damaged("its pickle takes a value that is not there")
        return self._stack.pop()

    def _top(self, kind: type, what: str) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise Damaged(f"its pickle puts entries into what is no {what}")
        return self._stack[-1]

    def _group(self) -> list[Any]:
        """Remove the values since the last mark from the stack, and return them."""
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _Mark:
                group = self._stack[place + 1 :]
                del self._stack[place:]
                return group
        raise Damaged("its pickle ends a group that has no beginning")

    def push(self, value: object) -> None:
        """Push an argument as a value. A text must be valid Unicode, because messages show it."""
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise Damaged(f"its pickle holds text that is no Unicode: {show(value)}") from None
        self._stack.append(value)

    def put(self, place: int | str | None) -> None:
        """Store the top value in the memo, at a place or at the next one."""
        value = self._pop()
        self._stack.append(value)
        self._memo[len(self._memo) if place is None else int(place)] = value

    def get(self, place: int) -> None:
        """Push the value that the memo has at a place."""
        if place not in self._memo:
            raise Damaged("its pickle fetches a value that it has not stored")
        self._stack.append(self._memo[place])

    # ---- containers ----

    def tuple_of(self, count: int) -> None:
        """Replace the top values by a tuple of them."""
        parts = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(parts)))

    def append(self, _: object) -> None:
        """Append the top value to the list below it."""
        value = self._pop()
        self._top(list, "list").append(value)

    def extend(self, _: object) -> None:
        """Append the values since the last mark to the list below it."""
        values = self._group()
        self._top(list, "list").extend(values)

    def set_item(self, _: object) -> None:
        """Put the top key and value into the dictionary below them."""
        value, key = self._pop(), self._pop()
        self._set(self._top(dict, "dictionary"), key, value)

    def set_items(self, _: object) -> None:
        """Put the keys and values since the last mark into the dictionary below it."""
        values = self._group()
        self._fill(self._top(dict, "dictionary"), values)

    def dictionary(self, _: object) -> None:
        """Replace the keys and values since the last mark by a dictionary."""
        out: dict[object, object] = {}
        self._fill(out, self._group())
        self._stack.append(out)

    def _fill(self, target: dict[object, object], values: list[object]) -> None:
        """Put keys and values, which alternate in a list, into a dictionary."""
        if len(values) % 2:
            raise Damaged("its pickle has a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            self._set(target, key, value)

    def _set(self, target: dict[object, object], key: object, value: object) -> None:
        """Put one entry into a dictionary.

        Keys may be texts, small integers, or short tuples of them. Others could be chosen so that
        their hashes collide, which takes a quadratic time.

        Raises:
            Refused: the key is of another type.
            Damaged: the key is there already.
        """
        if type(key) is tuple:
            self._tuples += 1
            flat = len(key) <= _KEY_LENGTH and all(map(_is_plain, key))
            if not flat or self._tuples > _TUPLES:
                raise Refused("a key of a dictionary is a tuple that is long, or holds more tuples")
        elif not _is_plain(key):
            raise Refused(f"a key of a dictionary is of type {type(key).__name__}, no text")
        if key in target:
            raise Damaged(f"a dictionary of its pickle has the key {show(key)} twice")
        target[key] = value

    # ---- names and what they build ----

    def name(self, argument: str) -> None:
        """Push what a name stands for; module and name are separated by a space."""
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def name_from_stack(self, _: object) -> None:
        """Push what a name stands for; module and name are the top values."""
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise Damaged("its pickle has a name that is no text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        """Push a name, if it is one of the builders or of the types of storages.

        Raises:
            Refused: the pickle asks for anything else.
        """
        found = _Name(module, name)
        if found not in _BUILDERS and not (module == "torch" and name in STORAGES):
            asked = show(f"{module}.{name}").strip("'\"")
            raise Refused(f"it asks for {asked}, which a state dict does not need")
        self._stack.append(found)

    def reduce(self, _: object) -> None:
        """Call a function with a tuple of arguments: one of the four builders, and nothing else."""
        arguments, function = self._pop(), self._pop()
        if type(function) is not _Name or function not in _BUILDERS:
            raise Refused("it calls what is no function of a state dict")
        if type(arguments) is not tuple:
            raise Damaged("its pickle calls a function without arguments")
        self._stack.append(_BUILDERS[function](self, *arguments[: AXES + 1]))

    def build(self, _: object) -> None:
        """Drop the attributes of an ordered dictionary, which hold a state dict's versions."""
        self._pop()
        if not self._stack or type(self._stack[-1]) is not dict:
            raise Refused("it changes the attributes of what is no dictionary")

    def storage(self, _: object) -> None:
        """Push the storage that a persistent id describes: ``("storage", type, key, device,
        length)``.

        Raises:
            Refused: the id describes something else, or one key has two types or lengths.
        """
        pid = self._pop()
        if type(pid) is not tuple or not 5 <= len(pid) <= 6 or any(v is not None for v in pid[5:]):
            raise Refused("it refers to something else than a plain storage")
        kind, dtype, key, _, length = pid[:5]
        known = type(dtype) is _Name and dtype.name in STORAGES
        if kind != "storage" or not known:
            raise Refused(f"it refers to {show(kind)}, not to a plain storage")
        if type(key) is not str or not 1 <= len(key) <= 256:
            raise Refused("it refers to a storage whose key is no text")
        if not _is_size(length) or length < 0:
            raise Refused(f"the storage {show(key)} has the length {show(length)}")
        found = Storage(STORAGES[dtype.name], key, length)
        if self.storages.setdefault(key, found) != found:
            raise Refused(f"the storage {show(key)} is there with two types or lengths")
        self._stack.append(found)

    def ordered(self, *arguments: Any) -> dict[object, object]:
        """Build an ordered dictionary, empty or from a list of pairs as Python 2 wrote it."""
        out: dict[object, object] = {}
        pairs = arguments[0] if arguments else []
        if len(arguments) > 1 or type(pairs) is not list:
            raise Damaged("its pickle makes a dictionary of what is no list of pairs")
        self._spend(len(pairs))
        for pair in pairs:
            if type(pair) not in (list, tuple) or len(pair) != 2:
                raise Damaged("its pickle makes a dictionary of what is no list of pairs")
            self._set(out, *pair)
        return out

    def parameter(self, *arguments: object) -> View:
        """Return the tensor of a parameter; whether it needs a gradient does not matter."""
        if not 1 <= len(arguments) <= 3 or type(arguments[0]) is not View:
            raise Damaged("its pickle makes a parameter of what is no tensor")
        return arguments[0]

    def view(self, *arguments: Any) -> View:
        """Return a tensor, after checking that it lies within its storage.

        The arguments are those of torch's ``_rebuild_tensor_v2``: storage, offset, size, stride,
        and up to three more that do not change the values.

        Raises:
            Refused: they are of other types, or the tensor leaves its storage.
        """
        if not 4 <= len(arguments) <= 7 or type(arguments[0]) is not Storage:
            raise Refused("it makes a tensor of what is no storage")
        storage, offset, size, stride = arguments[:4]
        for sizes in (size, stride):
            flat = type(sizes) in (tuple, list) and len(sizes) <= AXES
            if not flat or not all(map(_is_size, sizes)):
                raise Refused("a tensor has sizes or strides that are no short list of integers")
        if not _is_size(offset) or len(size) != len(stride):
            raise Refused("a tensor has no offset, or strides for another shape")
        found = View(storage, offset, tuple(size), tuple(stride))
        _check_bounds(found)
        return found


def _check_bounds(view: View) -> None:
    """Check that a view stays in its storage and is not much larger than it.

    Raises:
        Refused: the view leaves its storage, or its strides repeat many entries.
    """
    count = 1
    for n in view.size:
        count *= n
    shown = f"a tensor {show(view.size)} with strides {show(view.stride)}"
    if min((view.offset, *view.size, *view.stride)) < 0 or view.last >= view.storage.length:
        raise Refused(f"{shown} leaves its storage")
    if count > max(view.storage.length, _SMALL):
        raise Refused(f"{shown} has more numbers than its storage")


def _is_size(value: object) -> bool:
    return type(value) is int and abs(value) < _LARGEST


def _is_plain(key: object) -> bool:
    return type(key) is str or (type(key) is int and abs(key) < _HASHED)


_BUILDERS: dict[_Name, Callable[..., object]] = {
    _Name("collections", "OrderedDict"): Machine.ordered,
    _Name("torch._utils", "_rebuild_tensor_v2"): Machine.view,
    _Name("torch._utils", "_rebuild_tensor"): Machine.view,
    _Name("torch._utils", "_rebuild_parameter"): Machine.parameter,
}
_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_ACTS: dict[str, Callable[[Machine, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(_VALUES, Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine._stack.append(_Mark),
    "POP": lambda machine, _: machine._pop(),
    "POP_MARK": lambda machine, _: machine._group(),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.get),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine._group())),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine._group()),
    "APPEND": Machine.append,
    "APPENDS": Machine.extend,
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": Machine.dictionary,
    "SETITEM": Machine.set_item,
    "SETITEMS": Machine.set_items,
    "GLOBAL": Machine.name,
    "STACK_GLOBAL": Machine.name_from_stack,
    "REDUCE": Machine.reduce,
    "BUILD": Machine.build,
    "BINPERSID": Machine.storage,
}
