"""What a Runnable can touch at run time: its built-in functions, and frozen facades of reviewed modules.

`dialect` is the only caller. A facade is a module object that holds reviewed names and nothing else, so that
no real module is ever within reach; `guards` stands before attributes and classes, and `records` makes data
classes and named tuples.

Rules for every name added here. It must not get, set or call an attribute whose name the user chooses, except
through `guards`; this includes what it does to a `self` that the user chose, and to a class given as an
object (`self.__class__(...)` of a class is a call of the metaclass). It must not evaluate source, import or
open anything, nor return a module, a frame, a code object or a metaclass. Where the standard library's
function breaks one of these, ours stands in for it or the name is left out.
"""

from __future__ import annotations

import abc
import array
import base64
import binascii
import bisect
import builtins
import calendar
import cmath
import codecs
import collections
import collections.abc
import colorsys
import contextlib
import copy
import csv
import datetime
import decimal
import difflib
import email.utils
import encodings
import encodings.aliases
import enum
import fnmatch
import fractions
import functools
import graphlib
import hashlib
import heapq
import hmac
import html
import importlib
import io
import ipaddress
import itertools
import json
import keyword
import math
import numbers
import operator
import posixpath
import random
import re
import secrets
import shlex
import statistics
import string
import struct
import textwrap
import time
import types
import unicodedata
import urllib.parse
import uuid
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from processor import runnable
from processor.sandbox.facades import asyncio, exact, models
from processor.sandbox.facades.asyncio import deadlines, remaining_s, set_deadlines, wait_by
from processor.sandbox.facades.copies import copied, deepcopied
from processor.sandbox.facades.decimals import Context, getcontext, guard_decimal, localcontext
from processor.sandbox.facades.exact import deque
from processor.sandbox.facades.guards import (
    CLASS_NAMES,
    CLASSMETHOD,
    DEPENDENT,
    FIELDS,
    FORBIDDEN,
    FRESH,
    HINTS,
    HOOKS,
    INIT,
    LATER,
    METHODS,
    OF_DICT,
    OF_METACLASS,
    REVERSED,
    TYPE,
    WRITTEN_DICT,
    attribute,
    attributes_of,
    bases_allowed,
    bless,
    delete,
    has,
    inherited,
    insist_on_self,
    insisting,
    is_dunder,
    is_user_class,
    is_user_function,
    look_within,
    mangled,
    matchable,
    mix,
    put,
    read,
    shown,
    unmangled,
    user_class,
    words,
    writable,
    write,
)
from processor.sandbox.facades.hints import ABSTRACT, ANY, ASYNC, Hint, typing_names
from processor.sandbox.facades.logs import Logger, logging_names, plain_text, route_level
from processor.sandbox.facades.modules import bring_modules
from processor.sandbox.facades.records import (
    MISSING,
    Field,
    FrozenInstanceError,
    asdict,
    astuple,
    dataclass,
    fields_of,
    fresh,
    init_purpose,
    is_dataclass,
    make_dataclass,
    make_field,
    namedtuple,
    replace_fields,
)
from processor.sandbox.facades.standins import (
    Empty,
    Full,
    LifoQueue,
    PriorityQueue,
    Queue,
    SimpleQueue,
    ZoneInfo,
    ZoneInfoNotFoundError,
    available_timezones,
    enum_class,
    guard_user_string,
    name_as,
    names_of,
    pprint_names,
    singledispatch,
    singledispatchmethod,
    traceback_names,
    warnings_names,
    zones,
)
from processor.sandbox.kernel import GuestKernel
from processor.sandbox.languages import AUTHORITY, ERROR_CLASSES

__all__ = [
    "CLASS_NAMES", "DEPENDENT", "EXCEPTIONS", "FIELDS", "FORBIDDEN", "FRESH", "HINTS", "HOOKS", "INIT",
    "LATER", "LIBRARIES", "METHODS", "MODEL", "MODEL_ERROR", "MODULES", "OF_DICT", "OF_METACLASS",
    "RUNTIME_MODULES", "TYPE", "UNSUPPORTED", "WRITTEN_DICT", "Logger", "attribute", "bless",
    "bring_modules", "deadlines", "deque", "importable", "init_purpose", "insist_on_self",
    "insisting", "is_dunder", "is_user_class", "look_within", "make_namespace", "mangled", "mix",
    "names_in", "plain_text", "preload", "put", "read", "remaining_s", "route_level", "set_deadlines",
    "unmangled", "unruled", "wait_by", "words", "write",
]  # fmt: skip


# Functions that set or get names on what they are given, for a Runnable's own objects only.


def _wraps(wrapped: Any, *, assigned: Any = None, updated: Any = None) -> Callable[[Any], Any]:
    if assigned is not None or updated is not None:
        raise TypeError("wraps() takes only the wrapped function in a Runnable")

    def decorate(wrapper: Any) -> Any:
        if is_user_function(wrapper) or is_user_class(type(wrapper)):
            name_as(wrapper, wrapped)
        if is_user_function(wrapper) and is_user_function(wrapped):
            vars(wrapper).update(vars(wrapped))
        return wrapper

    return decorate


def _update_wrapper(wrapper: Any, wrapped: Any) -> Any:
    return _wraps(wrapped)(wrapper)


def _total_ordering(cls: Any) -> Any:
    if not is_user_class(cls):
        raise TypeError("total_ordering() is for a class of your own")
    return functools.total_ordering(cls)


def _abstractmethod(function: Any) -> Any:
    if is_user_function(function) or isinstance(function, (property, classmethod, staticmethod)):
        return abc.abstractmethod(function)
    raise TypeError("abstractmethod() is for a method of your own")


def _attrgetter(*names: str) -> Callable[[Any], Any]:
    for name in names:
        if type(name) is not str:
            raise TypeError("attribute name must be a string")
    paths = [name.split(".") for name in names]
    if not paths:
        raise TypeError("attrgetter expected at least 1 argument, got 0")

    def get(ob: Any) -> Any:
        values = tuple(functools.reduce(read, path, ob) for path in paths)
        return values[0] if len(values) == 1 else values

    return get


def _methodcaller(name: str, /, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    return lambda ob: read(ob, name)(*args, **kwargs)


# Enumerations, without the functional form: it builds classes past `user_class`.


class _EnumMeta(enum.EnumMeta):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            return super().__call__(*args)
        if cls.__members__:
            raise TypeError(f"{cls.__name__}() takes the value of one of its members")
        return enum_class(cls, *args, **kwargs)


def _enum(base: type) -> type:
    name = base.__name__
    cls: type = _EnumMeta(name, (base,), _EnumMeta.__prepare__(name, (base,)))
    bless(cls)
    return cls


# Containers of the standard library that are written in Python and call `self.__class__`.


# These call `self.__class__` or set attributes of `self`, whatever object that is.
for _cls, _names in (
    (collections.Counter, "copy"),
    (collections.ChainMap, "copy new_child parents"),
    (random.Random, "gauss seed setstate"),
    (difflib.SequenceMatcher, "get_matching_blocks get_opcodes quick_ratio set_seq1 set_seq2"),
    (hmac.HMAC, "copy"),
):
    for _name in words(_names):
        insist_on_self(_cls, _name)
for _kind in (
    collections.UserDict, collections.UserList, collections.UserString, graphlib.TopologicalSorter,
    *(kind for kind in vars(ipaddress).values() if isinstance(kind, type) and kind.__module__ == "ipaddress"),
):  # fmt: skip
    insisting(_kind)
guard_user_string()
exact.guard_collections()
exact.guard_json()
exact.guard_csv()
guard_decimal()

# The one mutable thing among the attributes of the classes that are handed out.
setattr(textwrap.TextWrapper, "unicode_whitespace_trans",  # noqa: B010
        types.MappingProxyType(textwrap.TextWrapper.unicode_whitespace_trans))  # fmt: skip


# Named tuples that the standard library returns; their methods begin with an underscore, as private names do.
for _result in (urllib.parse.ParseResult, urllib.parse.SplitResult, urllib.parse.DefragResult):
    for _name in ("_replace", "_asdict", "_fields"):
        setattr(_result, attribute(_name), getattr(_result, _name))


# The facades.


def _shlex_split(s: str, comments: bool = False, posix: bool = True) -> list[str]:
    if not isinstance(s, str):  # from None the standard library reads the process's own input
        raise TypeError("shlex.split() takes a str")
    return shlex.split(s, comments, posix)


def _facade(name: str, names: Mapping[str, Any]) -> types.ModuleType:
    # `from x import y` falls back to sys.modules[f"{x.__name__}.{y}"]: the name must not be a real one.
    module = types.ModuleType(f"runnable.{name}", f"{name}, as a Runnable sees it.")
    vars(module).update(names)

    def missing(attribute: str) -> NoReturn:
        known = ", ".join(sorted(names))
        raise AttributeError(
            f"module {module.__name__!r} has no attribute {attribute!r}; it has here: {known}"
        )

    vars(module)["__getattr__"] = missing
    return module


def _pick(module: types.ModuleType, names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in words(names) if hasattr(module, name)}


_BASE_CLASSES = (
    object, dict, list, set, frozenset, tuple, int, float, complex, exact.OrderedDict,
    collections.defaultdict, collections.Counter, exact.deque, collections.ChainMap,
    json.JSONEncoder, json.JSONDecoder, abc.ABC,
    str, bytes, collections.UserDict, collections.UserList, collections.UserString, random.Random,
    contextlib.AbstractContextManager, contextlib.ContextDecorator, datetime.tzinfo, string.Template,
)  # fmt: skip

PRELUDE_HINTS = words(
    "Any Callable Dict Generator Iterable Iterator List Mapping Optional Sequence Set Tuple Union"
)


def _build() -> dict[str, types.ModuleType]:
    for cls in (*_BASE_CLASSES, *ABSTRACT.values()):
        bless(cls)
    collections_abc = _facade("collections.abc", {**ABSTRACT, **ASYNC})
    urllib_parse = _facade(
        "urllib.parse",
        _pick(
            urllib.parse,
            "quote quote_plus quote_from_bytes unquote unquote_plus unquote_to_bytes urlencode urlparse "
            "urlsplit urlunparse urlunsplit urljoin urldefrag parse_qs parse_qsl",
        ),
    )
    email_utils = _facade(
        "email.utils",
        _pick(
            email.utils,
            "formataddr formatdate format_datetime getaddresses mktime_tz parseaddr parsedate "
            "parsedate_to_datetime parsedate_tz",
        ),
    )
    kinds = "Enum IntEnum Flag IntFlag StrEnum"
    modules: dict[str, dict[str, Any]] = {
        "abc": {"ABC": abc.ABC, "ABCMeta": Hint("ABCMeta", abc.ABC), "abstractmethod": _abstractmethod},
        "array": {"array": exact.array, "ArrayType": exact.array, "typecodes": array.typecodes},
        "asyncio": asyncio.NAMES,
        "base64": _pick(
            base64,
            "b64encode b64decode standard_b64encode standard_b64decode urlsafe_b64encode urlsafe_b64decode "
            "b32encode b32decode b16encode b16decode b85encode b85decode a85encode a85decode",
        ),
        "binascii": _pick(
            binascii,
            "Error a2b_base64 a2b_hex b2a_base64 b2a_hex crc32 crc_hqx hexlify unhexlify",
        ),
        "bisect": _pick(bisect, "bisect bisect_left bisect_right insort insort_left insort_right"),
        "calendar": _pick(
            calendar,
            "month calendar monthrange isleap leapdays weekday timegm monthcalendar day_name day_abbr "
            "month_name month_abbr "
            "MONDAY TUESDAY WEDNESDAY THURSDAY FRIDAY SATURDAY SUNDAY",
        ),
        "cmath": {name: value for name, value in vars(cmath).items() if not name.startswith("_")},
        "colorsys": _pick(colorsys, "rgb_to_yiq yiq_to_rgb rgb_to_hls hls_to_rgb rgb_to_hsv hsv_to_rgb"),
        "collections": {
            **_pick(collections, "defaultdict Counter ChainMap UserDict UserList UserString"),
            "deque": exact.deque,
            "OrderedDict": exact.OrderedDict,
            "namedtuple": namedtuple,
            "abc": collections_abc,
        },
        "contextlib": {
            **_pick(
                contextlib,
                "suppress nullcontext closing contextmanager ExitStack ContextDecorator "
                "AbstractContextManager",
            ),
            "aclosing": contextlib.closing,
            "asynccontextmanager": contextlib.contextmanager,
            "AbstractAsyncContextManager": contextlib.AbstractContextManager,
        },
        "copy": {"copy": copied, "deepcopy": deepcopied, "Error": copy.Error},
        "csv": _pick(
            csv,
            "reader writer DictReader DictWriter Error QUOTE_ALL QUOTE_MINIMAL QUOTE_NONNUMERIC QUOTE_NONE",
        ),
        "dataclasses": {
            "dataclass": dataclass,
            "field": make_field,
            "fields": lambda ob: tuple(fields_of(ob).values()),
            "asdict": asdict,
            "astuple": astuple,
            "replace": replace_fields,
            "make_dataclass": make_dataclass,
            "InitVar": Hint("InitVar"),
            "Field": Field,
            "is_dataclass": is_dataclass,
            "FrozenInstanceError": FrozenInstanceError,
            "MISSING": MISSING,
            "KW_ONLY": Hint("KW_ONLY"),
        },
        "datetime": {
            **_pick(datetime, "date time datetime timedelta timezone tzinfo MINYEAR MAXYEAR"),
            "UTC": datetime.UTC,
        },
        "decimal": {
            **_pick(
                decimal,
                "Decimal DecimalException InvalidOperation DivisionByZero "
                "Inexact Rounded Overflow Underflow Clamped Subnormal FloatOperation ROUND_UP ROUND_DOWN "
                "ROUND_CEILING ROUND_FLOOR ROUND_HALF_UP ROUND_HALF_DOWN ROUND_HALF_EVEN ROUND_05UP",
            ),
            "Context": Context,
            "getcontext": getcontext,
            "localcontext": localcontext,
        },
        "difflib": _pick(
            difflib, "SequenceMatcher get_close_matches ndiff unified_diff context_diff IS_LINE_JUNK"
        ),
        "enum": {
            **{name: _enum(getattr(enum, name)) for name in words(kinds)},
            **_pick(enum, "auto unique member nonmember property"),
        },
        "fnmatch": _pick(fnmatch, "fnmatch fnmatchcase filter translate"),
        "fractions": _pick(fractions, "Fraction"),
        "functools": {
            **_pick(functools, "reduce partial partialmethod cmp_to_key cached_property"),
            "lru_cache": exact.lru_cache,
            "cache": exact.cache,
            "singledispatch": singledispatch,
            "singledispatchmethod": singledispatchmethod,
            "wraps": _wraps,
            "update_wrapper": _update_wrapper,
            "total_ordering": _total_ordering,
        },
        "graphlib": _pick(graphlib, "TopologicalSorter CycleError"),
        "hashlib": _pick(
            hashlib,
            "md5 sha1 sha224 sha256 sha384 sha512 sha3_224 sha3_256 sha3_384 sha3_512 shake_128 shake_256 "
            "blake2b blake2s new pbkdf2_hmac scrypt",
        )
        | {"algorithms_guaranteed": frozenset(hashlib.algorithms_guaranteed)},
        "heapq": _pick(heapq, "heappush heappop heapify heapreplace heappushpop nlargest nsmallest merge"),
        "hmac": _pick(hmac, "new compare_digest digest"),
        "html": _pick(html, "escape unescape"),
        "io": {"StringIO": io.StringIO, "BytesIO": exact.BytesIO},
        "ipaddress": _pick(
            ipaddress,
            "ip_address ip_network ip_interface IPv4Address IPv4Network IPv4Interface IPv6Address "
            "IPv6Network IPv6Interface AddressValueError NetmaskValueError collapse_addresses "
            "summarize_address_range",
        ),
        "itertools": _pick(
            itertools,
            "accumulate batched chain combinations combinations_with_replacement compress count cycle "
            "dropwhile filterfalse groupby islice pairwise permutations product repeat starmap takewhile tee "
            "zip_longest",
        )
        | exact.ITERTOOLS,
        "json": _pick(json, "dumps loads JSONDecodeError JSONEncoder JSONDecoder"),
        "keyword": {
            **_pick(keyword, "iskeyword issoftkeyword"),
            "kwlist": tuple(keyword.kwlist),
            "softkwlist": tuple(keyword.softkwlist),
        },
        "math": {name: value for name, value in vars(math).items() if not name.startswith("_")},
        "numbers": _pick(numbers, "Number Complex Real Rational Integral"),
        "operator": {
            **_pick(
                operator,
                "itemgetter abs add and_ concat contains countOf eq floordiv ge getitem gt index indexOf inv "
                "invert is_ is_not le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift sub truediv "
                "truth xor iadd isub imul delitem setitem length_hint call iand ixor itruediv ifloordiv "
                "imod ipow ilshift irshift iconcat",
            ),
            "attrgetter": _attrgetter,
            "methodcaller": _methodcaller,
            "setitem": exact.set_item,
            "ior": exact.ior,
        },
        "posixpath": _pick(
            posixpath, "basename commonpath commonprefix dirname isabs join normpath sep split splitext"
        ),
        "queue": {
            kind.__name__: kind for kind in (Empty, Full, LifoQueue, PriorityQueue, Queue, SimpleQueue)
        },
        "pydantic": models.NAMES,
        "random": _pick(
            random,
            "random randint randrange randbytes choice choices sample shuffle uniform gauss normalvariate "
            "triangular betavariate expovariate gammavariate lognormvariate paretovariate vonmisesvariate "
            "weibullvariate binomialvariate seed getrandbits getstate setstate Random",
        ),
        "re": _pick(
            re,
            "compile search match fullmatch sub subn split findall finditer escape purge error PatternError "
            "Pattern Match A ASCII I IGNORECASE M MULTILINE S DOTALL X VERBOSE U UNICODE NOFLAG",
        ),
        "secrets": _pick(
            secrets, "choice compare_digest randbelow randbits token_bytes token_hex token_urlsafe"
        ),
        "shlex": {**_pick(shlex, "quote join"), "split": _shlex_split},
        "statistics": _pick(
            statistics,
            "mean fmean geometric_mean harmonic_mean median median_low median_high median_grouped mode "
            "multimode quantiles stdev pstdev variance pvariance covariance correlation linear_regression "
            "NormalDist StatisticsError",
        ),
        "string": _pick(
            string,
            "ascii_letters ascii_lowercase ascii_uppercase digits hexdigits octdigits punctuation printable "
            "whitespace capwords Template",
        ),
        "struct": {"error": struct.error, "Struct": exact.Struct, **exact.STRUCT},
        "textwrap": _pick(textwrap, "wrap fill dedent indent shorten TextWrapper"),
        "time": _pick(
            time,
            "time time_ns monotonic monotonic_ns perf_counter perf_counter_ns process_time sleep strftime "
            "strptime gmtime localtime mktime asctime ctime struct_time",
        ),
        "types": {
            **_pick(types, "SimpleNamespace MappingProxyType NoneType EllipsisType"),
            "FunctionType": shown(types.FunctionType),
            "MethodType": shown(types.MethodType),
            "GeneratorType": shown(types.GeneratorType),
            "LambdaType": shown(types.FunctionType),
            "BuiltinFunctionType": shown(types.BuiltinFunctionType),
            "ModuleType": shown(types.ModuleType),
        },
        "typing": typing_names(),
        "unicodedata": _pick(
            unicodedata,
            "normalize is_normalized category name lookup combining bidirectional decimal digit numeric "
            "decomposition east_asian_width mirrored",
        ),
        "uuid": _pick(
            uuid, "UUID uuid3 uuid4 uuid5 NAMESPACE_DNS NAMESPACE_OID NAMESPACE_URL NAMESPACE_X500"
        ),
        "zlib": _pick(
            zlib,
            "adler32 crc32 compress decompress compressobj decompressobj error Z_BEST_COMPRESSION "
            "Z_BEST_SPEED "
            "Z_DEFAULT_COMPRESSION MAX_WBITS",
        ),
        "zoneinfo": {
            "ZoneInfo": ZoneInfo,
            "ZoneInfoNotFoundError": ZoneInfoNotFoundError,
            "available_timezones": available_timezones,
        },
        AUTHORITY: {**ERROR_CLASSES, "AuthorityKernel": GuestKernel},
        "urllib": {"parse": urllib_parse},
        "email": {"utils": email_utils},
    }
    facades = {name: _facade(name, names) for name, names in modules.items()}
    facades["urllib.parse"] = urllib_parse
    facades["email.utils"] = email_utils
    facades["collections.abc"] = collections_abc
    return facades


def preload() -> None:
    """Make what the standard library loads at first use be there before a guest is closed; for the zygote.

    From then on an encoding that is not loaded is an unknown one, in place of an import that the jail stops.
    """
    known = {name: codecs.lookup(name) for name in words(_CODECS)}
    aliases = encodings.aliases.aliases

    def find(name: str) -> codecs.CodecInfo | None:
        name = encodings.normalize_encoding(name).lower()
        return known.get(aliases.get(name, name))

    zones()
    random.Random("a text is hashed")
    with contextlib.suppress(ImportError):
        importlib.import_module("_pylong")  # for integers of thousands of digits
    warnings.simplefilter("ignore")  # to show one, Python opens the source
    codecs.unregister(encodings.search_function)
    codecs.register(find)


_CODECS = (
    "ascii cp437 cp850 cp1250 cp1251 cp1252 hex_codec base64_codec idna iso8859_1 iso8859_2 iso8859_15 "
    "koi8_r latin_1 mac_roman punycode raw_unicode_escape rot_13 unicode_escape utf_16 utf_16_be "
    "utf_16_le utf_32 utf_32_be utf_32_le utf_7 utf_8 utf_8_sig "
)

MODULES = _build()

# The first call imports what it needs through the __import__ of its caller, which would be a Runnable's.
datetime.datetime.strptime("2000", "%Y")

# Modules that `make_namespace` builds for one Runnable, because they write to its log or speak for it.
RUNTIME_MODULES = frozenset(
    (
        "exospherehost", "httpx", "logging", "pprint", "processor", "processor.runnable", "requests",
        "requests.exceptions", "traceback", "warnings",
    )
)  # fmt: skip
_OF_RUNTIME_MODULES = {
    "exospherehost": ["BaseNode", "PruneSignal", "ReQueueAfterSignal", "Runtime"],
    "processor": ["runnable"],
    "processor.runnable": sorted({*runnable.__all__, *ERROR_CLASSES}),
}


# What has here a part of what programs know of it.
LIBRARIES = frozenset(("asyncio", "httpx", "pydantic"))
MODEL, MODEL_ERROR, UNSUPPORTED = models.BaseModel, models.ValidationError, models.UnsupportedError
unruled = models.unruled


def importable(module: str) -> bool:
    """Whether a Runnable may import `module`."""
    return module in MODULES or module in RUNTIME_MODULES


def names_in(module: str) -> list[str]:
    """What an importable module has in a Runnable; empty where that is known only when it runs."""
    facade = MODULES.get(module)
    if facade is None:
        return _OF_RUNTIME_MODULES.get(module, [])
    return [name for name in vars(facade) if not name.startswith("_")]


EXCEPTIONS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, BaseException) and not name.endswith("ExceptionGroup")
}
for _exception in EXCEPTIONS.values():
    bless(_exception)
EXCEPTIONS["UnicodeDecodeError"] = exact.UnicodeDecodeError  # not to derive from: its attributes could be set
bases_allowed.discard(UnicodeDecodeError)
bless(json.JSONDecodeError)

_BUILTINS = (
    "None True False Ellipsis NotImplemented abs all any ascii bin bool bytearray bytes callable chr "
    "classmethod complex dict divmod enumerate filter float format frozenset hash hex id int isinstance "
    "issubclass iter len list map max min next object oct ord pow property range repr round set "
    "slice sorted staticmethod str sum super tuple zip memoryview __build_class__"
)


def _print_to(write: Callable[[str, str], None]) -> Callable[..., None]:
    def print(
        *values: Any, sep: str | None = " ", end: str | None = "\n", file: Any = None, flush: bool = False
    ) -> None:
        text = (" " if sep is None else sep).join(map(str, values))
        if file is not None:
            file.write(text + ("\n" if end is None else end))
            return
        write("info", unmangled(text + (end or "").removesuffix("\n")))

    print.__qualname__ = "print"
    return print


def _import_from(modules: Mapping[str, types.ModuleType]) -> Callable[..., Any]:
    def __import__(name: str, _g: Any = None, _l: Any = None, names: Any = (), level: int = 0) -> Any:
        if type(names) is list:
            # C code imports through its caller's __import__ and then takes the module from sys.modules.
            return None
        if type(name) is not str or level or name not in modules:
            raise ImportError(f"{name!r} cannot be imported in a Runnable")
        return modules[name] if names else modules[name.partition(".")[0]]

    return __import__


class _Clock:
    """The bare name `time` in a Runnable: the module, and, when called, `datetime.time`."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> datetime.time:
        return datetime.time(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(MODULES["time"], name)


def make_namespace(
    log: Callable[[str, str], None],
    requests: object | None,
    extra: Mapping[str, Any],
    explain: Callable[[BaseException], tuple[str, str]],
    nodes: Mapping[str, Any] | None = None,
    httpx: object | None = None,
) -> dict[str, Any]:
    """Fresh globals for one Runnable: restricted builtins, what needs no import, and `extra`.

    `nodes` is what `exospherehost` has.
    """
    logger = Logger(log)
    modules = dict(MODULES)
    for name, names in (
        ("logging", logging_names(logger)),
        ("pprint", pprint_names(log)),
        ("traceback", traceback_names(log, explain)),
        ("warnings", warnings_names(log)),
    ):
        modules[name] = _facade(name, names)
    ours = modules["processor.runnable"] = _facade("processor.runnable", {**ERROR_CLASSES, **extra})
    modules["processor"] = _facade("processor", {"runnable": ours})
    if httpx is not None:
        modules["httpx"] = httpx  # type: ignore[assignment]
    if nodes is not None:
        modules["exospherehost"] = _facade("exospherehost", nodes)
    if requests is not None:
        modules["requests"] = requests  # type: ignore[assignment]
        modules["requests.exceptions"] = vars(requests)["exceptions"]
    space = {name: getattr(builtins, name) for name in words(_BUILTINS)}
    space["bytearray"] = exact.bytearray
    space.update(EXCEPTIONS)
    space.update(extra)
    space.update(
        {
            "getattr": read,
            "hasattr": has,
            "setattr": write,
            "delattr": delete,
            "type": TYPE,
            "reversed": REVERSED,
            "classmethod": CLASSMETHOD,
            "vars": attributes_of,
            "dir": names_of,
            "print": _print_to(log),
            "__import__": _import_from(modules),
            "~read": read,
            "~super": inherited,
            "~write": writable,
            "~put": put,
            "~match": matchable,
            "~items": exact.items_of,
            "~merged": exact.merging,
            "~caught": exact.caught,
            "~class": user_class,
            "~any": ANY,
            FRESH: fresh,
        }
    )
    hints = vars(MODULES["typing"])
    return {
        "__builtins__": space,
        "__name__": "runnable",
        **{name: MODULES[name] for name in ("json", "math", "re", "random", "hashlib")},
        "datetime": datetime.datetime,
        "time": _Clock(),
        **{name: hints[name] for name in PRELUDE_HINTS},
        "logger": logger,
        **({"requests": requests} if requests is not None else {}),
    }
