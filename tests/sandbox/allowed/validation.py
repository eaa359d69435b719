"""Exceptions of one's own, causes, retries and clean-up."""
import functools
import logging
import random
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


class AppError(Exception):
    """Base class of this program's errors."""

    code = "E000"

    def __init__(self, message, *, context=None):
        super().__init__(message)
        self.message = message
        self.context = context or {}

    def to_dict(self):
        return {"code": self.code, "message": self.message, **self.context}


class ValidationError(AppError):
    code = "E100"

    def __init__(self, field_name, problem):
        super().__init__(f"{field_name}: {problem}", context={"field": field_name})


class Missing(ValidationError, KeyError):
    code = "E101"

    def __str__(self):
        return self.message


def require(doc, name, kind, *, minimum=None):
    try:
        value = doc[name]
    except KeyError as err:
        raise Missing(name, "is required") from err
    if not isinstance(value, kind):
        raise ValidationError(name, f"expected {kind.__name__}, got {type(value).__name__}")
    if minimum is not None and value < minimum:
        raise ValidationError(name, f"{value} < {minimum}")
    return value


def check_errors():
    out = []
    for doc in ({"n": 5}, {}, {"n": "x"}, {"n": -1}):
        try:
            require(doc, "n", int, minimum=0)
        except Missing as err:
            out.append(["missing", err.to_dict(), type(err.__cause__).__name__, str(err)])
        except AppError as err:
            out.append([err.code, err.to_dict(), err.__cause__ is None])
        else:
            out.append("fine")
        finally:
            out.append("checked")
    return out


def check_chain():
    try:
        try:
            int("x")
        except ValueError as err:
            raise RuntimeError("cannot convert") from err
    except RuntimeError as err:
        first = [str(err), repr(err.__cause__), err.args]
    try:
        try:
            {}["a"]
        except KeyError:
            raise AppError("during")
    except AppError as err:
        second = [type(err.__context__).__name__, err.__cause__, err.__suppress_context__]
    try:
        try:
            1 / 0
        except ZeroDivisionError:
            raise AppError("hidden") from None
    except AppError as err:
        third = [err.__cause__ is None, err.__suppress_context__]
    return [first, second, third]


def check_finally():
    order = []

    def f(x):
        try:
            order.append("try")
            if x == 1:
                return "returned"
            if x == 2:
                raise ValueError("two")
            if x == 3:
                raise KeyError("three")
        except ValueError:
            order.append("except")
            return "handled"
        else:
            order.append("else")
        finally:
            order.append("finally")
            if x == 3:
                return "swallowed"
        return "end"

    return [f(0), f(1), f(2), f(3), order]


def retry(times=3, exceptions=(Exception,), delay=0.0):
    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> T:
            last: Optional[BaseException] = None
            for attempt in range(1, times + 1):
                try:
                    return function(*args, **kwargs)
                except exceptions as err:
                    last = err
                    log.warning("attempt %d of %s: %s", attempt, function.__name__, err)
            raise AppError(f"{function.__name__} failed after {times} attempts") from last
        return wrapper
    return decorate


def check_retry():
    calls = []

    @retry(times=3, exceptions=(ValueError, OSError))
    def flaky(n):
        """Fails at first."""
        calls.append(n)
        if len(calls) < n:
            raise ValueError(f"call {len(calls)}")
        return "ok"

    result = flaky(2)
    try:
        flaky(10)
    except AppError as err:
        failed = [str(err), str(err.__cause__)]
    return [result, failed, flaky.__name__, flaky.__doc__, len(calls)]


def check_notes():
    err = ValueError("x")
    err.add_note("while reading row 3")
    try:
        raise err
    except ValueError as caught:
        return [caught.__notes__, str(caught)]


def check_builtins():
    out = []
    for make in (lambda: [][1], lambda: {}["k"], lambda: int("x"), lambda: None + 1, lambda: 1 / 0, lambda: "a".nope, lambda: next(iter([])), lambda: undefined, lambda: len(3), lambda: (lambda: 0)(1)):
        try:
            make()
        except (IndexError, KeyError, ValueError) as err:
            out.append(f"{type(err).__name__}: {err}")
        except Exception as err:
            out.append(f"{err.__class__.__name__}: {err}".replace("check_builtins.<locals>.", ""))
    return [o for o in out if "lambda" not in o]


def check_assert():
    try:
        assert 1 > 2, "one is less"
    except AssertionError as err:
        return str(err)


def check_error_list():
    errors: list[Exception] = []
    for value in ("1", "x", None):
        try:
            int(value)
        except (TypeError, ValueError) as err:
            errors.append(err)
    return [isinstance(e, ValueError) for e in errors] + [[str(e) for e in errors]]


def check_traceback():
    try:
        require({}, "n", int)
    except AppError:
        text = traceback.format_exc()
    lines = text.strip().splitlines()
    try:
        int("x")
    except ValueError as err:
        listed = traceback.format_exception(err)
        only = traceback.format_exception_only(err)
    return [lines[0], "Missing: n: is required" in lines[-1], "KeyError: 'n'" in text, "direct cause" in text, listed[0], listed[-1], only]


def check_unhandled_in_generator():
    def numbers():
        try:
            yield 1
            yield 2
        except ValueError as err:
            yield f"caught {err}"
        finally:
            closed.append(True)
    closed = []
    g = numbers()
    return [next(g), g.throw(ValueError("v")), next(g, "done"), closed]


class Runnable:
    def process(self, queries):
        return [
            check_errors(),
            check_chain(),
            check_finally(),
            check_retry(),
            check_notes(),
            check_builtins(),
            check_assert(),
            check_error_list(),
            check_traceback(),
            check_unhandled_in_generator(),
        ]
