class Code:
    def __index__(self):
        return 98


class Text(bytes):
    pass


class Runnable:
    def process(self, queries):
        text = bytearray(b"abcab")
        text[2] = Code()
        text += b"!"
        text.extend([Code(), 99])
        text[0:1] = [Code()]
        text[-1:] = b"z"
        parts = text.split(b"b")
        return [text.find(Code()), text.count(b"b"), Code() in text, text.decode(), text[1:3].upper().decode(), text.hex(":"),
                [part.decode() for part in parts], bytearray([Code(), 1]).hex(), (text * 2)[3:].startswith((b"a", Text(b"!"))),
                bytearray(b"%s=%d") % (b"k", 5) == b"k=5", bytearray(b",").join([b"a", Text(b"b")]).decode(), isinstance(parts[0], bytearray),
                type(text.replace(b"b", b"")) is bytearray, bytearray.fromhex("6162").decode(), repr(bytearray(3)), bytearray("é", "utf-8").hex(),
                [b for b in bytearray(b"ab")], bytes(memoryview(text)[:2]).decode(), text.partition(b"b")[0].decode(), len(text), text == bytes(text)]
