import array
import struct


class Runnable:
    def process(self, queries):
        numbers = array.array("B", bytes(32))
        struct.pack_into("10p", numbers, 0, b"xyz")
        packed = struct.Struct("<1p100p2H")
        return [numbers.tolist()[:5], packed.size, packed.pack(b"", b"abc", 1, 2)[:6].hex(), packed.format, struct.unpack("10p", numbers[:10])[0].decode(),
                struct.calcsize("0s10p"), struct.pack(b"4p", b"abcdef").hex(), isinstance(packed, struct.Struct), type(packed).__name__,
                [one[0] for one in struct.iter_unpack("<H", bytes(4))], list(packed.iter_unpack(packed.pack(b"", b"q", 7, 8)))[0][2:]]
