class Runnable:
    def process(self, queries):
        from dataclasses import FrozenInstanceError, asdict, astuple, dataclass, field, fields, replace
        from typing import ClassVar

        @dataclass(order=True)
        class Point:
            x: int
            y: int = 0
            tags: list = field(default_factory=list, compare=False)
            _secret: str = field(default="s", repr=False)
            origin: ClassVar[int] = 5

            def __post_init__(self):
                self.total = self.x + self.y

        @dataclass(frozen=True)
        class Fixed:
            a: int
            b: "str" = "b"

            def __post_init__(self):
                object.__setattr__(self, "c", self.a + 1)

        @dataclass
        class Point3(Point):
            z: int = 9

        @dataclass(kw_only=True, slots=True)
        class Options:
            name: str
            size: int = 1

        point = Point(1, tags=["a"])
        fixed = Fixed(1)
        try:
            fixed.a = 2
        except FrozenInstanceError as err:
            frozen = str(err)
        errors = []
        for call in (lambda: Point(), lambda: Point(1, 2, [], "s", 5), lambda: Point(1, q=2), lambda: Options("x")):
            try:
                call()
            except TypeError as err:
                errors.append("ok")
        return [
            repr(point), point == Point(1), Point(1) < Point(2), asdict(point), list(astuple(fixed)), point.total, frozen,
            fixed.c, hash(fixed) == hash(Fixed(1)), repr(Point3(1, z=2)), [f.name for f in fields(Point3)], Point.origin,
            repr(replace(point, x=5)), repr(Options(name="n")), errors, point._secret,
        ]
