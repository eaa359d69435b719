import asyncio


class Tables:
    def __init__(self, rows):
        self.rows = list(rows)

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, err, trace):
        self.rows.append(kind.__name__ if kind else "done")
        return kind is ValueError

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.rows:
            raise StopAsyncIteration
        return self.rows.pop(0)


async def fetch(n):
    await asyncio.sleep(0)
    if n == 2:
        raise ValueError(f"no {n}")
    return n * 10


async def counted(n):
    for i in range(n):
        yield await fetch(i)


async def main():
    found = []
    async with Tables("ab") as table, asyncio.Lock():
        found += [row async for row in table]
    found += table.rows
    async for row in Tables("cd"):
        found.append(row)
    async with Tables("") as failing:
        await fetch(2)
    found += failing.rows
    found += [{n: n async for n in counted(2)}, [await fetch(n) for n in (1, 3)]]
    found.append(await anext(Tables("e")))
    return found


class Runnable:
    def process(self, queries):
        return asyncio.run(main())
