import array


class Code:
    def __init__(self, number):
        self.number = number

    def __index__(self):
        return self.number


class Price(int):
    pass


class Runnable:
    def process(self, queries):
        cells = array.array("B", [1, Code(2), True])
        cells[0] = Code(65)
        cells.append(Code(66))
        cells.insert(1, Price(7))
        cells.extend(Code(n) for n in range(3))
        cells[1:3] = array.array("B", [9])
        prices = array.array("d", [1, 2.5, Price(3)])
        prices[0] = Price(4)
        joined = (cells + cells[:2]) * 2
        return [cells.tolist(), prices.tolist(), joined.tolist(), cells.index(Code(2) and 2), cells.count(1), 66 in cells,
                type(cells[1:]) is array.array, isinstance(joined, array.array), repr(prices), bytes(cells).hex(), cells == cells[:]]
