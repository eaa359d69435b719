from collections.abc import Sequence


class Lines(Sequence):
    def __init__(self, *lines):
        self.lines = lines

    def __len__(self):
        return len(self.lines)

    def __getitem__(self, at):
        return self.lines[at]


class Texts:
    pass


class Register:
    def __init__(self):
        self.names = []

    def register(self, name):
        self.names.append(name)
        return name


class Loud(Register):
    def register(self, name):
        return super().register(name.upper())


class Runnable:
    def process(self, queries):
        Lines.register(Texts)
        register = Loud()
        return [
            isinstance(Lines("a"), Sequence), isinstance(Texts(), Lines), list(Lines("a", "b")),
            register.register("x"), register.names,
        ]
