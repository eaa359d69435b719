class Runnable:
    def process(self, queries):
        class Index(dict):
            def __missing__(self, key):
                return key.upper()

        class Stack(list):
            def push(self, item):
                self.append(item)

        stack = Stack()
        stack.push(1)
        return [Index()["a"], stack, isinstance(stack, list)]
