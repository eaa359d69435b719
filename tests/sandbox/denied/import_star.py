# E203 'from math import *' is not allowed. Name what you use
from math import *

class Runnable:
    def process(self, queries):
        return sqrt(4)
