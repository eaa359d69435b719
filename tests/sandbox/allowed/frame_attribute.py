class Runnable:
    def process(self, queries):
        return list(number * 2 for number in range(3) if number)
