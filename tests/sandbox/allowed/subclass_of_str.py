class Runnable:
    def process(self, queries):
        class Index(dict):
            def __missing__(self, key):
                return key.upper()

        class Stack(list):
            def push(self, item):
                self.append(item)

        class Code(str):
            def __new__(cls, text):
                return super().__new__(cls, text.upper())

            def head(self):
                return self[:2]

        stack = Stack()
        stack.push(1)
        return [Index()["a"], stack, isinstance(stack, list), Code("abc").head(), Code("{0.real}").lower().format(3), {Code("k"): 1}["K"]]
