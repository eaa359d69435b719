# E202 the attribute 'gi_frame' is not allowed
class Runnable:
    def process(self, queries):
        generator = (number for number in [1])
        return generator.gi_frame.f_back
