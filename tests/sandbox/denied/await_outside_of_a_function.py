# E201 'await' outside function.
import asyncio

FOUND = await asyncio.sleep(0, 5)


class Runnable:
    def process(self, queries):
        return FOUND
