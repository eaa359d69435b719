# E202 '__await__' as a name is not allowed. Calls to the outside wait by themselves.
class Later:
    def __await__(self):
        yield 1


class Runnable:
    async def process(self, queries):
        return await Later()
