# TypeError: __len__ of a class derived from str or bytes cannot be defined in a Runnable
class Empties:
    def __len__(self):
        views[0].release()
        items.clear()
        return 1


items, views = bytearray(b"A" * 5_000_000), []


class Runnable:
    def process(self, queries):
        class Separator(Empties, bytes):
            pass

        views.append(memoryview(items))
        return views[0].hex(Separator(b":"))
