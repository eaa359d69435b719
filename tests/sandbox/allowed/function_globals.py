LIMIT: int = 3
_hidden = [1]
count = 0

def helper(items, _step=1, *rest, flag: bool = False, **options) -> list:
    global count
    count += 1
    return [items[:LIMIT:_step], rest, flag, options, _hidden, count]

class Runnable:
    def process(self, queries):
        return helper([1, 2, 3, 4], 2, 5, flag=True, _x=1)
