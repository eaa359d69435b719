total = 0


class Runnable:
    def process(self, queries):
        global total
        total += 1
        return [total]
