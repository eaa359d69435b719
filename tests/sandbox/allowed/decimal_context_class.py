class Runnable:
    def process(self, queries):
        from decimal import ROUND_HALF_UP, Decimal, getcontext, localcontext
        from fractions import Fraction

        with localcontext() as context:
            context.prec = 6
            short = str(Decimal(1) / 3)
        return [short, str(Decimal("2.345").quantize(Decimal("0.01"), ROUND_HALF_UP)), str(Fraction(1, 3) + Fraction(1, 6)), getcontext().prec]
