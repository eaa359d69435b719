import csv
import io


class Runnable:
    def process(self, queries):
        reader, writer = csv.reader(["a,b"]), csv.writer(io.StringIO())
        return [isinstance(reader, type(reader)), isinstance(writer, type(writer)), isinstance(writer, type(reader)),
                type(reader) is type(csv.reader([])), type(reader).__name__]
