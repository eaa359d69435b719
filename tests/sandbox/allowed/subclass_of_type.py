class Runnable:
    def process(self, queries):
        import abc

        class Shape(abc.ABC):
            @abc.abstractmethod
            def area(self): ...

            @classmethod
            def unit(cls):
                return cls(1)

            @staticmethod
            def describe():
                return "shape"

        class Square(Shape):
            def __init__(self, side):
                self._side = side

            @property
            def side(self):
                return self._side

            @side.setter
            def side(self, value):
                self._side = value

            def area(self):
                return self._side**2

        square = Square.unit()
        square.side = 3
        try:
            Shape()
        except TypeError:
            return [square.area(), square.side, Square.describe()]
