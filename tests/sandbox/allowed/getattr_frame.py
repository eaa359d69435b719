class Runnable:
    def process(self, queries):
        def numbers():
            received = yield 1
            yield received
            yield from [3, 4]

        generator = numbers()
        first = next(generator)
        return [first, generator.send(2), *generator]
