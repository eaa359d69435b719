class Runnable:
    def process(self, queries):
        class Box:
            pass

        box = Box()
        object.__setattr__(box, "size", 1)
        return box.size
