# E202 'async def' is not allowed. Write 'def': calls to the outside wait by themselves.
class Runnable:
    def process(self, queries):
        async def fetch():
            return 1
