# AttributeError: 'format' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        class Text(str):
            pass

        return Text.format("{0.__class__}", 1)
