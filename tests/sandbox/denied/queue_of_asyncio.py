# E203 'from asyncio import Queue' is not allowed. asyncio has here: BoundedSemaphore, CancelledError, Lock, Semaphore, TimeoutError, as_completed, create_task, ensure_future, gather, run, sleep, timeout, wait_for. The rest of it is for 'language: python'.
from asyncio import Queue


class Runnable:
    async def process(self, queries):
        return Queue().qsize()
