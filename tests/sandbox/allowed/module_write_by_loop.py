class Runnable:
    def process(self, queries):
        class Box:
            pass

        box = Box()
        for box.item in [1, 2]:
            pass
        *box.rest, box.last = [1, 2, 3]
        return [box.item, box.rest, box.last]
