# AttributeError: 'gi_frame' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        generator = (number for number in [1])
        return getattr(generator, "gi_" + "frame")
