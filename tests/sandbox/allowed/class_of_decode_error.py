class Mine(UnicodeError):
    def __init__(self, data, at):
        super().__init__(f"byte {data[at]:#x} at {at}")
        self.start = at


class Runnable:
    def process(self, queries):
        try:
            raise Mine(b"ab", 1)
        except UnicodeError as err:
            return [str(err), err.start]
