import asyncio


async def slow(n):
    await asyncio.sleep(n)
    return n


async def failing(n):
    raise ValueError(n)


class Service:
    async def fetch(self, n):
        return n


class Better(Service):
    async def fetch(self, n):
        return await asyncio.gather(super().fetch(n), asyncio.sleep(0, "x"))


async def main():
    found = [repr(each) for each in await asyncio.gather(
        slow(0), failing(1), *[slow(n) for n in (0, 0)], *(failing(n) for n in range(2)),
        return_exceptions=True,
    )]
    try:
        await asyncio.gather(slow(0), failing(3))
    except ValueError as err:
        found.append(str(err))
    try:
        await asyncio.wait_for(fut=slow(30), timeout=0.01)
    except asyncio.TimeoutError:
        found.append("late")
    try:
        async with asyncio.timeout(0.01) as bound:
            await slow(30)
    except TimeoutError:
        found.append(bound.expired())
    async with asyncio.timeout(None) as bound:
        found += [await asyncio.wait_for(slow(0), 30), bound.expired()]
    task = asyncio.create_task(slow(0))
    return found + [await task, await Better().fetch(4)]


class Runnable:
    def process(self, queries):
        return asyncio.run(main())
