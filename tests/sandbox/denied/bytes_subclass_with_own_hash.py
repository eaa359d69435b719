# TypeError: __hash__ of a class derived from bytes cannot be defined in a Runnable
texts, views = [], []


class Runnable:
    def process(self, queries):
        class Frees(bytes):
            def __hash__(self):
                views.pop().release()
                texts.clear()
                return 5

        texts.append(Frees(b"x" * 5_000_000))
        views.append(memoryview(texts[0]))
        return hash(views[0])
