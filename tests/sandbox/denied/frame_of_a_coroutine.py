# E202 the attribute 'cr_frame' is not allowed. It belongs to the interpreter; use a name of your own.
class Runnable:
    async def fetch(self):
        return 1

    async def process(self, queries):
        return self.fetch().cr_frame.f_globals
