# AttributeError: '__add__' is not accessible in a Runnable on a class
class Runnable:
    def process(self, queries):
        from collections import Counter

        return Counter.__add__(int, 1)
