# AttributeError: '__class__' is not accessible in a Runnable
class Other:
    pass


class Order:
    def become(self, cls):
        super().__setattr__("__class__", cls)


class Runnable:
    def process(self, queries):
        Order().become(Other)
        return []
