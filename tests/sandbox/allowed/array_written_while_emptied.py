import array
import io


class Runnable:
    def process(self, queries):
        file = io.BytesIO()
        array.array("H", [1, 2, 3]).tofile(file)
        file.seek(0)
        back = array.array("H")
        back.fromfile(file, 2)
        try:
            back.fromfile(file, 2)
        except EOFError:
            return [back.tolist(), len(file.getvalue())]
