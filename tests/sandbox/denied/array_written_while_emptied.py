# AssertionError: 100000 bytes were written
import array


class File:
    def write(self, data):
        del cells[:]
        written.append(len(data))


cells, written = array.array("B", bytes(100_000)), []


class Runnable:
    def process(self, queries):
        cells.tofile(File())
        assert written != [100_000] or cells, f"{sum(written)} bytes were written"
