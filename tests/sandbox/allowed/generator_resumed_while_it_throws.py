def inner():
    try:
        yield 1
    except KeyError as err:
        yield str(err)
    finally:
        log.append("inner")


def outer():
    try:
        yield from inner()
    except ValueError as err:
        yield str(err)


class Thrown:
    def throw(self, how):
        return how


log = []


class Runnable:
    def process(self, queries):
        first, second = outer(), outer()
        next(first)
        next(second)
        return [first.throw(KeyError("k")), second.throw(ValueError("v")), list(first), list(second), log, Thrown().throw("x")]
