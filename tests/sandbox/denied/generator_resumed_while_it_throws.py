# TypeError: exceptions must be classes or instances deriving from BaseException, not int
def inner():
    try:
        yield 1
    finally:
        outers.pop().close()


def outer():
    yield from inner()


outers = []


class Runnable:
    def process(self, queries):
        generator = outer()
        next(generator)
        outers.append(generator)
        generator.throw(5)
