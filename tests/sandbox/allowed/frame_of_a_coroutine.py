import asyncio


class Runnable:
    async def fetch(self):
        return 1

    def process(self, queries):
        return asyncio.run(self.fetch())
