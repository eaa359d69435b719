# ValueError: byte must be in range(0, 256)
class Empties:
    def __index__(self):
        text.clear()
        return 256


text = bytearray(1_000_000)


class Runnable:
    def process(self, queries):
        text.find(Empties())
