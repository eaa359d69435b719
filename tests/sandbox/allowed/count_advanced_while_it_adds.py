from decimal import Decimal
from fractions import Fraction
from itertools import accumulate, chain, count, groupby, islice, pairwise, zip_longest


class Step(int):
    def __add__(self, other):
        return Step(int(self) + int(other))


class Runnable:
    def process(self, queries):
        groups = [(key, list(group)) for key, group in groupby([1, 1, 2, 3, 3], key=lambda n: n % 2)]
        try:
            count("a")
        except TypeError as err:
            text = str(err)
        return [list(islice(count(Step(1), Step(2)), 4)), str(next(count(Decimal("0.5")))), str(list(islice(count(Fraction(1, 2)), 2))[1]),
                list(accumulate([1, 2, 3])), list(accumulate([1, 2], lambda a, b: a * b, initial=4)), list(chain("ab", [1])),
                list(chain.from_iterable(["ab", "c"])), groups, list(pairwise("abc")), list(zip_longest("ab", "c", fillvalue="-")), text,
                list(zip(count(), "ab"))]
