# E203 'import os' is not allowed. Importable here: abc,
import os

class Runnable:
    def process(self, queries):
        return os.getcwd()
