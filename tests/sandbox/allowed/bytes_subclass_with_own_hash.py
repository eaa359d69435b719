class Name(bytes):
    def __eq__(self, other):
        return bytes(self).lower() == bytes(other).lower()

    __hash__ = None


class Text(bytes):
    pass


class Label(str):
    def __hash__(self):
        return hash(str(self).lower())

    def __eq__(self, other):
        return str(self).lower() == str(other).lower()


class Runnable:
    def process(self, queries):
        view = memoryview(Text(b"abc"))
        return [Name(b"A") == b"a", hash(view) == hash(b"abc") == hash(Text(b"abc")), len({Label("A"), Label("a")}),
                {b"abc": 1}[Text(b"abc")], Text.__hash__ is not None]
