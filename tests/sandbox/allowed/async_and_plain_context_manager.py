import asyncio


class Client:
    async def __aenter__(self):
        return 1

    async def __aexit__(self, *_):
        pass


async def main():
    async with Client() as it:
        return it


class Runnable:
    def process(self, queries):
        return asyncio.run(main())
