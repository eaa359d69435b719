class Runnable:
    def process(self, queries):
        _read, _write = 1, 2
        return [_read, ~_write]
