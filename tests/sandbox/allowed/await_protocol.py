import asyncio


class Later:
    async def value(self):
        return 1


class Runnable:
    def process(self, queries):
        return asyncio.run(Later().value())
