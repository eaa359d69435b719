# E203 'from json import decoder' is not allowed. json has here: JSONDecodeError,
from json import decoder

class Runnable:
    def process(self, queries):
        return decoder.scanner
