import io


class Runnable:
    def process(self, queries):
        empty = io.BytesIO()
        views = [empty.getbuffer(), empty.getbuffer()]
        try:
            empty.write(b"x")
        except BufferError as err:
            refused = type(err).__name__
        for view in views:
            view.release()
        empty.write(b"abc")
        full = io.BytesIO(b"a\nb\n")
        full.seek(2)
        view = full.getbuffer()
        view[0] = 65
        return [[len(view) for view in (empty.getbuffer(), full.getbuffer())], refused, empty.tell(), full.tell(), full.read(),
                full.getvalue(), isinstance(full, io.BytesIO), type(full) is io.BytesIO, list(io.BytesIO(b"1\n2")), view.readonly]
