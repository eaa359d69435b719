# TypeError: Counter.copy() is for an instance of Counter
class Runnable:
    def process(self, queries):
        from collections import Counter

        class Mine:
            pass

        return Counter.copy(Mine)("Made", (str,), {})
