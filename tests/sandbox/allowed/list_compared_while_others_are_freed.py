class Version:
    def __init__(self, text):
        self.parts = self.numbers(text)

    def numbers(self, text):
        try:
            for part in text.split("."):
                yield int(part)
        finally:
            closed.append(text)

    def __eq__(self, other):
        return NotImplemented

    def __lt__(self, other):
        return next(self.parts) < next(other.parts) if isinstance(other, Version) else NotImplemented


closed = []


class Runnable:
    def process(self, queries):
        errors = 0
        for number in range(40):
            try:
                [Version(f"{number}.1")] < [number]
            except TypeError:
                errors += 1
        return [[Version("1.2")] < [Version("2.1")], [Version("3")] < [Version("2")], errors, "1.2" in closed]
