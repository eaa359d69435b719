class Runnable:
    def process(self, queries):
        if (count := len("abc")) > 2:
            return [count, [y for x in range(3) if (y := x * 2)]]
