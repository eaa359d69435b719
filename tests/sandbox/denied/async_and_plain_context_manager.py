# E202 '__aenter__' beside '__enter__' is not allowed. A Runnable waits by itself, so that they are one method here: leave one of them out.
class Client:
    def __enter__(self):
        raise RuntimeError("use async with")

    async def __aenter__(self):
        return self


class Runnable:
    def process(self, queries):
        return 1
