import copy
import decimal
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Rounded, getcontext, localcontext


def error(action):
    try:
        return str(action())
    except (decimal.DecimalException, TypeError, KeyError, ValueError) as err:
        return type(err).__name__


class Runnable:
    def process(self, queries):
        flags = Context(prec=4).flags
        flags[Inexact] = True
        context = Context(prec=3, rounding=decimal.ROUND_UP, traps=[DivisionByZero], Emin=-99, Emax=99, capitals=0, clamp=1)
        quotient = context.divide(Decimal(10), 3)
        seen = [bool(context.flags[Inexact]), bool(context.flags[DivisionByZero]), context.traps[DivisionByZero], flags[Inexact]]
        context.clear_flags()
        context.traps[Inexact] = True
        trapped = error(lambda: context.divide(Decimal(1), 3))
        copied = [context.copy(), copy.copy(context), copy.deepcopy(context)]
        with localcontext() as inner:
            inner.prec = 5
            inner.traps = {signal: False for signal in inner.traps}
            first = [str(Decimal(1) / 3), str(Decimal(1) / 0), inner is getcontext()]
            with localcontext(Context(prec=2), Emax=9) as innermost:
                second = [str(Decimal(1) / 3), innermost.prec, innermost.Emax, getcontext().prec]
            third = str(+Decimal("1.23456789"))
        kept = inner.prec
        with localcontext(prec=7):
            fourth = str(Decimal(1) / 7)
        return [str(quotient), seen, trapped, [(one.prec, one.rounding, one.Emin, one.clamp, one.traps[Inexact]) for one in copied],
                first, second, third, kept, fourth, str(Decimal(1) / 7), error(lambda: Decimal(1) / 0), error(lambda: localcontext(5)),
                error(lambda: localcontext(precision=5)), isinstance(getcontext(), Context), repr(Context(prec=5)), len(context.flags),
                sorted(signal.__name__ for signal in context.flags)[:2], context.flags == Context().flags, dict(context.flags)[Rounded],
                context.flags.copy() == Context().flags, error(lambda: context.flags.pop(Inexact)), context.flags.get(1),
                str(Decimal("2.675").quantize(Decimal("0.01"), context=Context(prec=9))), error(lambda: Decimal("x")), InvalidOperation in flags,
                str(context.create_decimal("1.20")), context.Etiny(), error(lambda: setattr(context, "prec", 0))]
