"""Exact and inexact numbers."""
import cmath
import decimal
import fractions
import math
import numbers
import random
import statistics
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, InvalidOperation, getcontext, localcontext
from fractions import Fraction


def check_money():
    price, rate = Decimal("19.99"), Decimal("0.21")
    tax = (price * rate).quantize(Decimal("0.01"), rounding=ROUND_HALF_UP)
    with localcontext() as ctx:
        ctx.prec = 6
        third = Decimal(1) / 3
    with decimal.localcontext(decimal.Context(prec=4)):
        quarter = Decimal(10) / 7
    try:
        Decimal("x")
    except InvalidOperation:
        bad = True
    try:
        Decimal(1) / Decimal(0)
    except decimal.DivisionByZero as err:
        zero = isinstance(err, ZeroDivisionError)
    parts = [(price / 3).quantize(Decimal("0.01"), ROUND_DOWN)] * 3
    parts[0] += price - sum(parts)
    return [str(tax), str(third), str(quarter), bad, zero, [str(p) for p in parts], f"{price:.1f}", f"{Decimal('1234.5'):,.2f}", str(Decimal(0.5)), Decimal("1.10") == Decimal("1.1"), str(Decimal("1.10").normalize()), price.as_tuple().exponent, str(sum([price, tax], Decimal())), str(price.to_integral_value()), Decimal("NaN").is_nan(), str(max(price, tax)), int(price), str(round(price, 1)), float(tax), str(Decimal("1e3")), str(Decimal(7) // 2), str(Decimal(2).sqrt()), price.compare(tax) == 1, getcontext().prec, str(Decimal((0, (1, 2), -1))), str(abs(Decimal(-1))), hash(Decimal(1)) == hash(1), isinstance(price, numbers.Number)]


def check_fractions():
    a = Fraction(1, 3)
    return [str(a + Fraction("1/6")), a.numerator, a.denominator, float(Fraction(1, 4)), str(Fraction(0.75)), str(Fraction("3.14159").limit_denominator(100)), a < 1, str(a ** 2), str(Fraction(7, 2) // 1), math.floor(Fraction(7, 2)), repr(a), str(sum([a] * 3)), isinstance(a, numbers.Rational), str(Fraction(Decimal("0.5")))]


def check_math():
    return [math.sqrt(16), math.ceil(1.2), math.floor(-1.2), math.trunc(1.9), math.gcd(12, 18), math.lcm(4, 6), math.factorial(5), math.comb(5, 2), math.perm(5, 2), math.isclose(0.1 + 0.2, 0.3), math.hypot(3, 4), round(math.log(100, 10), 9), math.log2(8), math.log10(1000), math.exp(0), math.prod([2, 3]), math.fsum([0.1] * 10), math.copysign(1, -2), math.isnan(math.nan), math.inf > 1, math.degrees(math.pi), math.dist([0, 0], [3, 4]), math.modf(1.5), math.frexp(8), math.isqrt(17), round(math.sin(math.radians(30)), 9), round(2.5), round(3.5), round(1.2345, 2), round(1234, -2), 7 // -2, 7 % -2, divmod(-7, 2), 2 ** 10, 2 ** -1, pow(3, 4, 5), abs(-3), 10 ** 20, int("1" * 30), 0.1 + 0.2, 1_000_000, 0xFF, 0b11, 0o17, (5).bit_length(), (255).to_bytes(2, "big").hex(), int.from_bytes(b"\x01\x00", "little"), (3.5).is_integer(), (0.75).as_integer_ratio(), (1.5).hex(), float.fromhex("0x1.8p+0"), 5 & 3 | 8 ^ 1, ~5, 1 << 4, bin(5), oct(8), hex(255), bool(0), int(3.9), complex(1, 2).conjugate().imag, sum([0.5, 1]), (6).bit_count(), True + True]


def check_complex():
    return [str(cmath.sqrt(-1)), round(cmath.phase(1j), 6), abs(3 + 4j), cmath.polar(1j)[0], (1 + 2j).real, str(cmath.rect(1, 0)), cmath.isclose(1j, 1j)]


def check_random():
    rng = random.Random(42)
    other = random.Random(42)
    a = [rng.random(), rng.randint(1, 6), rng.choice("abc"), rng.sample(range(10), 3), rng.uniform(0, 1), rng.choices([1, 2], weights=[1, 9], k=4), rng.gauss(0, 1)]
    b = [other.random(), other.randint(1, 6), other.choice("abc"), other.sample(range(10), 3), other.uniform(0, 1), other.choices([1, 2], weights=[1, 9], k=4), other.gauss(0, 1)]
    deck = list(range(5))
    random.Random(1).shuffle(deck)
    random.seed(7)
    x = random.random()
    random.seed(7)
    return [a == b, a, deck, x == random.random(), 0 <= random.randrange(10) < 10]


def check_statistics():
    data = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]
    return [statistics.mean(data), statistics.pstdev(data), statistics.median_low(data), statistics.mode(data), statistics.variance(data), statistics.quantiles(data, n=10)[8], statistics.harmonic_mean([40, 60]), round(statistics.geometric_mean([1, 9]), 9), statistics.correlation([1, 2, 3], [2, 4, 7]), statistics.linear_regression([1, 2], [3, 5]).slope, statistics.NormalDist(0, 1).cdf(0), statistics.fmean([1, 2])]


def check_welford():
    class Running:
        def __init__(self): self.n = 0; self.mean = self._m2 = 0.0
        def push(self, x):
            self.n += 1
            delta = x - self.mean
            self.mean += delta / self.n
            self._m2 += delta * (x - self.mean)
        @property
        def variance(self): return self._m2 / (self.n - 1) if self.n > 1 else math.nan
    r = Running()
    for x in (2, 4, 4, 4, 5, 5, 7, 9): r.push(x)
    return [r.mean, round(r.variance, 9)]


def check_ema():
    alpha, ema, out = 0.5, None, []
    for price in (10, 12, 11):
        ema = price if ema is None else alpha * price + (1 - alpha) * ema
        out.append(ema)
    return out


class Runnable:
    def process(self, queries):
        return [
            check_money(),
            check_fractions(),
            check_math(),
            check_complex(),
            check_random(),
            check_statistics(),
            check_welford(),
            check_ema(),
        ]
