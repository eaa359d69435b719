# TypeError: Lock.release() is for an instance of Lock
import asyncio
import json


class Runnable:
    def process(self, queries):
        asyncio.Lock.release(json)
