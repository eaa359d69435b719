import asyncio

FOUND = asyncio.run(asyncio.sleep(0, 5))


class Runnable:
    def process(self, queries):
        return FOUND
