import string


class Letter(string.Template):
    def __init__(self, template):
        super().__init__(template + "!")


class Runnable:
    def process(self, queries):
        return [Letter("Dear $name").substitute(name="Ada")]
