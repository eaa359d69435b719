"""The second look: what the bytecode of a program does, whatever compiler made it.

`compile_program` asks last, and hands the code on only when there is nothing to say. Nothing here knows of
the passes before: code that went round them is refused on its own account. An operation that nobody
reviewed is refused, and so is every program on a Python that is not in `REVIEWED`: a new one loads no
Runnable until its operations were added to `OPERATIONS`.
"""

from __future__ import annotations

import dis
import inspect
import sys
import types
from collections.abc import Collection, Iterable, Iterator
from typing import cast

from RestrictedPython.transformer import INSPECT_ATTRIBUTES

from processor.sandbox import facades
from processor.sandbox.dialect.holding import HELD
from processor.sandbox.facades import FIELDS, is_dunder

MAX_COMPLAINTS = 100
# The versions of Python whose operations were read, one by one.
REVIEWED = frozenset(((3, 11), (3, 12), (3, 13)))

# Attributes that belong to the interpreter, on this version and on those that RestrictedPython knows.
FORBIDDEN = facades.FORBIDDEN | INSPECT_ATTRIBUTES

# Names with underscores at both ends that a source may bind: at its top, and in the body of a class.
MODULE_NAMES = frozenset(("__all__", "__version__", "__author__"))
CLASS_BODY_NAMES = facades.METHODS | facades.HOOKS | {"__slots__", "__match_args__", "__class_getitem__"}
# Classes whose one positional pattern is the object itself.
SELF_MATCHING = frozenset(
    ("bool", "bytearray", "bytes", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple")
)

# Every operation whose effect was reviewed, of CPython 3.11 to 3.13; any other is refused.
OPERATIONS = frozenset(
    facades.words("""
    BEFORE_WITH BINARY_OP BINARY_SLICE BINARY_SUBSCR BUILD_CONST_KEY_MAP BUILD_LIST BUILD_MAP BUILD_SET
    BUILD_SLICE BUILD_STRING BUILD_TUPLE CALL CALL_FUNCTION_EX CALL_INTRINSIC_1 CALL_KW CHECK_EXC_MATCH
    CLEANUP_THROW COMPARE_OP CONTAINS_OP CONVERT_VALUE COPY COPY_FREE_VARS DELETE_ATTR DELETE_DEREF
    DELETE_FAST DELETE_GLOBAL DELETE_NAME DELETE_SUBSCR DICT_MERGE DICT_UPDATE END_FOR END_SEND
    FORMAT_SIMPLE FORMAT_VALUE FORMAT_WITH_SPEC FOR_ITER GET_ITER GET_LEN GET_YIELD_FROM_ITER IMPORT_FROM
    IMPORT_NAME IS_OP JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT JUMP_FORWARD JUMP_IF_FALSE_OR_POP
    JUMP_IF_TRUE_OR_POP KW_NAMES LIST_APPEND LIST_EXTEND LIST_TO_TUPLE LOAD_ASSERTION_ERROR LOAD_ATTR
    LOAD_BUILD_CLASS LOAD_CLASSDEREF LOAD_CLOSURE LOAD_CONST LOAD_DEREF LOAD_FAST LOAD_FAST_AND_CLEAR
    LOAD_FAST_CHECK LOAD_FAST_LOAD_FAST LOAD_FROM_DICT_OR_DEREF LOAD_FROM_DICT_OR_GLOBALS LOAD_GLOBAL
    LOAD_LOCALS LOAD_METHOD LOAD_NAME LOAD_SUPER_ATTR MAKE_CELL MAKE_FUNCTION MAP_ADD MATCH_CLASS
    MATCH_KEYS MATCH_MAPPING MATCH_SEQUENCE NOP POP_EXCEPT POP_JUMP_BACKWARD_IF_FALSE
    POP_JUMP_BACKWARD_IF_NONE POP_JUMP_BACKWARD_IF_NOT_NONE POP_JUMP_BACKWARD_IF_TRUE
    POP_JUMP_FORWARD_IF_FALSE POP_JUMP_FORWARD_IF_NONE POP_JUMP_FORWARD_IF_NOT_NONE
    POP_JUMP_FORWARD_IF_TRUE POP_JUMP_IF_FALSE POP_JUMP_IF_NONE POP_JUMP_IF_NOT_NONE POP_JUMP_IF_TRUE
    POP_TOP PRECALL PUSH_EXC_INFO PUSH_NULL RAISE_VARARGS RERAISE RESUME RETURN_CONST RETURN_GENERATOR
    RETURN_VALUE SEND SET_ADD SET_FUNCTION_ATTRIBUTE SET_UPDATE STORE_ATTR STORE_DEREF STORE_FAST
    STORE_FAST_LOAD_FAST STORE_FAST_STORE_FAST STORE_GLOBAL STORE_NAME STORE_SLICE STORE_SUBSCR SWAP
    TO_BOOL UNARY_INVERT UNARY_NEGATIVE UNARY_NOT UNARY_POSITIVE UNPACK_EX UNPACK_SEQUENCE
    WITH_EXCEPT_START YIELD_VALUE
    """)
)
# CALL_INTRINSIC_1 with STOPITERATION_ERROR, UNARY_POSITIVE, LIST_TO_TUPLE; not import *, not the rest.
_INTRINSICS = frozenset((3, 5, 6))
_GUARDS = frozenset((
    "~read", "~super", "~write", "~put", "~match", "~class", "~any", "~items", "~caught", "~merged",
    facades.FRESH,
))  # fmt: skip
_READ_ATTRIBUTE = frozenset(("LOAD_ATTR", "LOAD_METHOD"))
_WRITE_ATTRIBUTE = frozenset(("STORE_ATTR", "DELETE_ATTR"))
_CELLS = frozenset(("STORE_DEREF", "DELETE_DEREF"))
_SUPER_WITH_ARGUMENTS = 2  # the bit in the argument of LOAD_SUPER_ATTR
_ASYNC_FLAGS = 0x80 | 0x100 | 0x200  # coroutine, iterable coroutine, async generator
_CONSTANTS = (int, float, complex, str, bytes, bool, type(None), type(...))


def verify(code: types.CodeType, own: Collection[str] = ()) -> list[tuple[int, str]]:
    """What the bytecode of a program does that no Runnable may: line and sentence. Empty for a good one.

    `own` are the names of modules that it may import beside the reviewed ones.
    """
    if sys.version_info[:2] not in REVIEWED:
        known = ", ".join(f"{major}.{minor}" for major, minor in sorted(REVIEWED))
        found = ".".join(map(str, sys.version_info[:2]))
        return [(1, f"the operations of Python {found} were not reviewed: run a Runnable on one of {known}")]
    return _Verifier(code, own).complaints


class _Verifier:
    """Checks what `compile` made, knowing nothing of how it came about."""

    def __init__(self, code: types.CodeType, own: Collection[str]) -> None:
        self._own = own
        self.complaints: list[tuple[int, str]] = []
        self._line = 1
        self._knows_extended_slices = False
        self._unguarded_items: list[int] = []  # the lines of code that sets an item past its guard
        pending = [code]
        while pending:
            pending += self._verify(pending.pop())
        if self._knows_extended_slices:
            for line in self._unguarded_items:
                self._line = line
                self._complain("an item is set without its guard where there are extended slices")

    def _complain(self, text: str) -> None:
        if len(self.complaints) < MAX_COMPLAINTS:
            self.complaints.append((self._line, text))

    def _verify(self, code: types.CodeType) -> list[types.CodeType]:
        """Complain of what is wrong in `code`; the code objects among its constants."""
        self._line = code.co_firstlineno or 1
        if code.co_flags & _ASYNC_FLAGS:
            self._complain("asynchronous code is not allowed")
        flags = (code.co_flags & inspect.CO_VARARGS > 0) + (code.co_flags & inspect.CO_VARKEYWORDS > 0)
        parameters = code.co_argcount + code.co_kwonlyargcount + flags
        own = [name for name in code.co_varnames[parameters:] if not name.startswith(HELD)]
        for name in (*code.co_varnames[:parameters], *own, *code.co_cellvars, *code.co_freevars):
            of_class = name in ("__class__", "__classdict__") and name not in code.co_varnames
            if (
                name.startswith("~")
                or name == "super"
                or (is_dunder(name) and not of_class and name not in facades.METHODS)
            ):
                self._complain(f"the variable {name!r} is not allowed")
        inner = list(self._constants(code.co_consts))
        before: list[dis.Instruction] = []
        counts = dict.fromkeys(
            (
                "write",
                "guarded",
                "class",
                "built",
                "match",
                "positional",
                "super",
                "handed",
                "set",
                "items",
                "ior",
                "merged",
            ),
            0,
        )
        operations = [
            operation
            for operation in dis.get_instructions(code)
            if operation.opname not in ("CACHE", "EXTENDED_ARG")
        ]
        for at, instruction in enumerate(operations):
            if instruction.positions is not None and instruction.positions.lineno is not None:
                self._line = instruction.positions.lineno
            self._instruction(instruction, before, counts)
            if instruction.argval == "super" and instruction.opcode in dis.hasname:
                counts["handed"] += self._hands_super(operations[at + 1 : at + 6])
            before.append(instruction)
        if counts["write"] > counts["guarded"]:
            self._complain("an attribute is set without its guard")
        if counts["set"] > counts["items"]:
            self._unguarded_items.append(self._line)
        if counts["ior"] > counts["merged"]:
            self._complain("'|=' is without its guard")
        if counts["built"] > counts["class"]:
            self._complain("a class is built without its guard")
        if counts["handed"] > counts["super"]:
            self._complain("super as a value is not allowed")
        if counts["positional"] and not counts["match"]:
            self._complain("a positional class pattern is used without its guard")
        return inner

    def _constants(self, constants: Iterable[object]) -> Iterator[types.CodeType]:
        for constant in constants:
            if type(constant) is types.CodeType:
                yield constant
            elif type(constant) in (tuple, frozenset):
                yield from self._constants(cast("tuple[object, ...]", constant))
            elif type(constant) not in _CONSTANTS:
                self._complain(f"a constant of type {type(constant).__name__} is not allowed")

    def _instruction(
        self, instruction: dis.Instruction, before: list[dis.Instruction], counts: dict[str, int]
    ) -> None:
        operation, name = instruction.opname, instruction.argval
        if operation not in OPERATIONS:
            self._complain(f"the operation {operation} is not known to be harmless")
        elif operation == "CALL_INTRINSIC_1" and instruction.arg not in _INTRINSICS:
            self._complain(f"the operation {operation} {instruction.arg} is not allowed")
        elif operation in _READ_ATTRIBUTE:
            self._attribute(name, after_super=_follows_super(before))
        elif operation == "LOAD_SUPER_ATTR":
            if (instruction.arg or 0) & _SUPER_WITH_ARGUMENTS:
                self._complain("super() with arguments is not allowed")
            self._attribute(name, after_super=True)
        elif operation in _WRITE_ATTRIBUTE:
            is_held = _gives_held(before)
            counts["write"] += not is_held
            if is_held:
                pass
            elif not before or (before[-1].opname, before[-1].arg) not in (("CALL", 1), ("SWAP", 2)):
                self._complain(f"the attribute {name!r} is set on what no guard returned")
            self._attribute(name, after_super=False, written=True)
        elif "_FAST" in operation:
            self._local(instruction, before, counts)
        elif operation == "COPY":
            counts["guarded"] += _gives_held(before)  # for an augmented assignment
        elif operation == "IMPORT_NAME":
            level = before[-2] if len(before) > 1 else None
            if level is None or level.opname != "LOAD_CONST" or level.argval != 0:
                self._complain("importing what is not named from the top is not allowed")
            if not facades.importable(name) and name not in self._own:
                self._complain(f"importing {name!r} is not allowed")
        elif operation == "IMPORT_FROM":
            if name.startswith("_"):
                self._complain(f"importing the name {name!r} is not allowed")
            self._attribute(name, after_super=False)
        elif operation in _CELLS:
            if name == "__class__":
                self._complain("setting the variable '__class__' is not allowed")
        elif operation == "MATCH_CLASS":
            self._pattern_names(before)
            counts["positional"] += bool(instruction.arg) and not _names_builtin(before)
        elif operation == "LOAD_BUILD_CLASS":
            counts["built"] += 1
        elif operation == "BUILD_SLICE":
            self._knows_extended_slices |= instruction.arg == 3
        elif operation == "STORE_SUBSCR":
            counts["set"] += 1
        elif operation == "BINARY_OP":
            counts["ior"] += instruction.argrepr == "|="
        elif instruction.opcode in dis.hasname:
            counts["guarded"] += name == "~write"
            counts["class"] += name == "~class"
            counts["match"] += name == "~match"
            counts["super"] += name == "~super"
            counts["items"] += name == "~items"
            counts["merged"] += name == "~merged"
            self._knows_extended_slices |= name == "slice"
            self._variable(operation, name)

    def _attribute(self, name: str, *, after_super: bool, written: bool = False) -> None:
        if written and name in facades.METHODS:
            return  # of a class of the user's, where it says what its body could
        if name in FORBIDDEN or is_dunder(name):
            self._complain(f"the attribute {name!r} is not allowed")
        elif name.startswith("_") and name not in ("_", "_value_", "_name_"):
            self._complain(f"the private attribute {name!r} is not allowed")
        elif after_super and name in facades.OF_METACLASS:
            return
        elif name in facades.DEPENDENT and not written:
            self._complain(f"the attribute {name!r} is read without its guard")
        elif name.startswith("~"):
            self._complain(f"the attribute {name!r} is not allowed")

    def _variable(self, operation: str, name: str) -> None:
        loads = operation.startswith("LOAD_")
        if name.startswith("~"):
            of_body = name in (FIELDS, facades.HINTS, facades.INIT) and operation == "STORE_NAME"
            if not (name in _GUARDS if loads else of_body):
                self._complain(f"the name {name!r} is not allowed")
        elif is_dunder(name):
            allowed = CLASS_BODY_NAMES | MODULE_NAMES
            if loads and name == "__name__" and operation == "LOAD_NAME":
                return  # a class body begins with __module__ = __name__
            if operation == "STORE_NAME" and name in facades.CLASS_NAMES | {"__classdictcell__"}:
                return
            if name not in allowed:
                self._complain(f"the name {name!r} is not allowed")
        elif name == "super" and not loads:
            self._complain("the name 'super' is not allowed")

    def _hands_super(self, after: list[dis.Instruction]) -> bool:
        """Whether what `super()` gives goes on as an argument; complain of all but that and an attribute."""
        names = [operation for operation in after if operation.opname not in ("PUSH_NULL", "PRECALL")]
        if [operation.opname for operation in names[2:3]] == ["LOAD_SUPER_ATTR"]:
            return False
        match names:
            case [call, taken, *_] if call.opname == "CALL" and call.arg == 0:
                if taken.opname in _READ_ATTRIBUTE:
                    return False
                if taken.opname == "LOAD_CONST" and type(taken.argval) is str:
                    return True
            case _:
                pass
        self._complain("super as a value is not allowed")
        return False

    def _local(
        self, instruction: dis.Instruction, before: list[dis.Instruction], counts: dict[str, int]
    ) -> None:
        """Complain of a held variable that holds anything but None or what `~write` gave for a variable."""
        operation, names = instruction.opname, _locals_of(instruction)
        if operation in ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_LOAD_FAST"):
            return
        if operation == "STORE_FAST_LOAD_FAST":
            names = names[:1]
        if not any(name.startswith(HELD) for name in names):
            return
        last = [(one.opname, one.argval) for one in before[-6:] if one.opname not in ("PRECALL", "PUSH_NULL")]
        match last[-4:]:
            case [*_, ("LOAD_CONST", None)] if operation in ("STORE_FAST", "STORE_FAST_LOAD_FAST"):
                return
            case [("LOAD_GLOBAL", "~write"), ("LOAD_FAST" | "LOAD_DEREF", _), ("CALL", 1), ("COPY", 1)] if (
                operation == "STORE_FAST"
            ):
                counts["guarded"] -= 1  # was counted for a store of its own
            case _:
                self._complain(f"the variable {names[0]!r} is set to what no guard returned")

    def _pattern_names(self, before: list[dis.Instruction]) -> None:
        names = before[-1].argval if before and before[-1].opname == "LOAD_CONST" else None
        if type(names) is not tuple:
            self._complain("a class pattern without its names is not allowed")
            return
        for name in names:
            if type(name) is not str:
                self._complain("a class pattern with a name that is not a text is not allowed")
            else:
                self._attribute(name, after_super=False)


def _locals_of(instruction: dis.Instruction) -> tuple[str, ...]:
    names = instruction.argval
    return names if type(names) is tuple else (str(names),)


def _gives_held(before: list[dis.Instruction]) -> bool:
    """Whether the value on top of the stack is that of a held variable."""
    last = before[-1] if before else None
    return last is not None and "_FAST" in last.opname and _locals_of(last)[-1].startswith(HELD)


def _names_builtin(before: list[dis.Instruction]) -> bool:
    """Whether the class of a pattern is one of those that match themselves."""
    load = before[-2] if len(before) > 1 else None
    return load is not None and load.opname in ("LOAD_GLOBAL", "LOAD_NAME") and load.argval in SELF_MATCHING


def _follows_super(before: list[dis.Instruction]) -> bool:
    """Whether the value on top of the stack is what `super()` gave."""
    names = [instruction for instruction in before[-4:] if instruction.opname not in ("PRECALL", "PUSH_NULL")]
    match [(i.opname, i.argval) for i in names[-2:]]:
        case [("LOAD_GLOBAL", "super"), ("CALL", 0)]:
            return True
        case _:
            return False
