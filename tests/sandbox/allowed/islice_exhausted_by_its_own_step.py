import itertools
from itertools import compress, cycle, dropwhile, filterfalse, islice, starmap, takewhile


class Runnable:
    def process(self, queries):
        batches = [list(b) for b in getattr(itertools, "batched", lambda items, n: [(1, 2), (3,)])([1, 2, 3], 2)]
        return [list(islice(cycle("ab"), 1, 6, 2)), list(compress("abc", [1, 0, 1])), list(dropwhile(str.islower, "abC")), batches,
                list(filterfalse(str.isupper, "aB")), list(starmap(pow, [(2, 3)])), list(takewhile(lambda n: n < 3, range(9)))]
