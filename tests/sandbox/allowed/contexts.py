"""contextlib, in all its forms."""
import contextlib
import io
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, closing, contextmanager, nullcontext, suppress

events = []


@contextmanager
def section(name, fail=False):
    events.append(f"+{name}")
    try:
        yield name.upper()
    except KeyError as err:
        events.append(f"caught {err}")
    finally:
        events.append(f"-{name}")


class Resource:
    def __init__(self, name): self.name, self.closed = name, False
    def close(self): self.closed = True; events.append(f"close {self.name}")


class Transaction(AbstractContextManager):
    def __exit__(self, *exc):
        events.append("rollback" if exc[0] else "commit")
        return False


class tagged(ContextDecorator):
    def __init__(self, tag): self.tag = tag
    def __enter__(self): events.append(f"<{self.tag}>"); return self
    def __exit__(self, *exc): events.append(f"</{self.tag}>"); return False


@tagged("b")
def bold(x): return x * 2


@section("decorated")
def inside(): return "in"


def check_sections():
    events.clear()
    with section("a") as a, section("b") as b:
        events.append(a + b)
    with section("c"):
        raise KeyError("k")
    with suppress(ZeroDivisionError, ValueError):
        1 / 0
    try:
        with Transaction():
            raise RuntimeError
    except RuntimeError:
        pass
    with Transaction() as t:
        events.append(type(t).__name__)
    return [list(events), bold(2), inside(), list(events)[-4:]]


def check_stack():
    events.clear()
    with ExitStack() as stack:
        names = [stack.enter_context(section(n)) for n in "xy"]
        stack.callback(events.append, "callback")
        r = stack.enter_context(closing(Resource("r")))
        stack.push(lambda *exc: events.append("pushed"))
        kept = stack.pop_all()
    events.append("after")
    kept.close()
    with nullcontext(5) as five:
        pass
    return [names, list(events), five, r.closed]


class Runnable:
    def process(self, queries):
        return [
            check_sections(),
            check_stack(),
        ]
