class Runnable:
    def process(self, queries):
        class Mine:
            count = 0

        Mine.count += 1
        def call():
            call.count = getattr(call, "count", 0) + 1
            return call.count
        call()
        return [Mine.count, Mine().count, call()]
