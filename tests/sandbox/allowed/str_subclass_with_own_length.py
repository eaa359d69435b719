from collections import UserString


class Wide(UserString):
    def __len__(self):
        return 2 * len(self.data)


class Runnable:
    def process(self, queries):
        return [len(Wide("ab")), memoryview(b"abc").hex(":"), bytearray(b"ab").hex("-", 1)]
