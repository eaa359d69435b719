# TypeError: a class in a Runnable cannot derive from 'slice'
class Runnable:
    def process(self, queries):
        class Text(type(Optional)("hint", slice)):
            pass

        return Text("a")
