# E203 'import os' is not allowed. Settings and secrets come from the configuration
import os

class Runnable:
    def process(self, queries):
        return os.getcwd()
