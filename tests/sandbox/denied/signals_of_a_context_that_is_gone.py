# ValueError: no signal is set
import decimal


class Runnable:
    def process(self, queries):
        for _ in range(50):
            flags = decimal.Context().flags
            others = [bytearray(b"\xff" * n) for n in range(1, 400)]
            if any(flags.values()):
                return len(others)
        raise ValueError("no signal is set")
