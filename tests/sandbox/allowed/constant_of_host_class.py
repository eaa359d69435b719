import textwrap


class Runnable:
    def process(self, queries):
        return textwrap.TextWrapper(width=9).wrap("one\ttwo three\nfour")
