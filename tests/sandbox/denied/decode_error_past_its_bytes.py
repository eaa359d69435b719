# ValueError: the bytes -1099511627776 to -1099511627775 are not among the 1 that were given
class Runnable:
    def process(self, queries):
        return str(UnicodeDecodeError("utf-8", b"x", -(1 << 40), 1 - (1 << 40), "y"))
