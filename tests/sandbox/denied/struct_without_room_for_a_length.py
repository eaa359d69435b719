# error: '0p' has no room for the length of its text; write '1p' or more
import array
import struct


class Runnable:
    def process(self, queries):
        numbers = array.array("B", bytes(32))
        try:
            struct.Struct(b"<2x00p").pack_into(numbers, 30, b"xyz")
        except struct.error:
            struct.pack_into("0p", numbers, 32, b"xyz")
