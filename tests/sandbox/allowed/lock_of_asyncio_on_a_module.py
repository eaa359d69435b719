import asyncio


async def main():
    lock, places = asyncio.Lock(), asyncio.Semaphore(2)
    found = [lock.locked(), await lock.acquire(), lock.locked()]
    lock.release()
    async with places, places, lock:
        found.append(places.locked())
    return found + [lock.locked(), places.locked()]


class Runnable:
    def process(self, queries):
        return asyncio.run(main())
