class Runnable:
    def process(self, queries):
        class Point:
            def __init__(self, x, _y):
                self.x = x
                self._y = _y

        results = []
        for value in ({"kind": "a", "n": 1, "more": 2}, [1, 2, 3], Point(1, 2), 7, "x", None):
            match value:
                case {"kind": "a", "n": n, **rest}:
                    results.append([n, rest])
                case [first, *others]:
                    results.append([first, others])
                case Point(x=1, _y=y):
                    results.append(y)
                case int(number) if number > 5:
                    results.append(number)
                case "x" | "y" as letter:
                    results.append(letter)
                case _:
                    results.append("other")
        return results
