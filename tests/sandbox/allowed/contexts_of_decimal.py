from contextlib import ExitStack
from decimal import Decimal, getcontext, localcontext


def holding(digits):
    with localcontext() as context:
        context.prec = digits
        yield str(Decimal(1) / 3)
        yield str(Decimal(2) / 3)


class Digits(tuple):
    def __new__(cls, number):
        with localcontext() as context:
            context.prec = 2
            return super().__new__(cls, (0, (1, 2, int(str(Decimal(number) / 3)[0])), -1))


class Runnable:
    def process(self, queries):
        with ExitStack() as stack:
            contexts = [stack.enter_context(localcontext()) for _ in range(20)]
            for digits, context in enumerate(contexts, 1):
                context.prec = digits
            inside = [getcontext().prec, str(Decimal(1) / 3), len({id(context) for context in contexts})]
        kept = [context.prec for context in contexts]
        with localcontext() as again:
            fresh = [again.prec, str(Decimal(1) / 3)]
        return [[*holding(3)], [*holding(4)], str(Decimal(Digits(10))), inside, kept, fresh, getcontext().prec, f"{Decimal('1234.5'):,.2f}"]
