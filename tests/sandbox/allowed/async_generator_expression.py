import asyncio


async def pages():
    for page in ([1, 2], [], [3]):
        yield page


async def total():
    return sum([item async for page in pages() for item in page if item != 2])


class Runnable:
    def process(self, queries):
        return asyncio.run(total())
