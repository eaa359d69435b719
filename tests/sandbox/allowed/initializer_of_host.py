import textwrap


class Base:
    def __init__(self, width):
        self.width = width


class Derived(Base):
    def __init__(self):
        Base.__init__(self, 10)


class Runnable:
    def process(self, queries):
        return [Derived().width, textwrap.TextWrapper(10).width]
