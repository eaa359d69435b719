import csv
import io


class Tail:
    def __init__(self, lines):
        self.lines = lines

    def __iter__(self):
        return self

    def __next__(self):
        if not self.lines:
            raise StopIteration
        return self.lines.pop(0)


def lines():
    yield "a,b\n"
    yield "1,2\n"


def error(source):
    try:
        return list(csv.reader(source))
    except Exception as err:
        return type(err).__name__


class Runnable:
    def process(self, queries):
        tail = Tail(["a,b", '1,"x'])
        growing = csv.reader(tail)
        first = next(growing)
        tail.lines.append('y",2')
        rows = [first, *growing]
        tail.lines.append("3,4")
        buffer = io.StringIO("a;b\r\n1;'2;3'\r\n")
        reader = csv.reader(buffer, delimiter=";", quotechar="'")
        return [rows, [*growing], growing.line_num, [*reader], reader.line_num, list(csv.reader(lines())),
                list(csv.reader(map(str.upper, ["a,b", "c,d"]))), list(csv.reader(("a|b",), "excel", delimiter="|")),
                list(csv.DictReader(lines())), csv.DictReader(Tail(["x,y", "1,2,3"]), restkey="more").fieldnames,
                list(csv.DictReader(Tail(["x,y", "1,2,3"]), restkey="more")), error([b"a"]), error(5), error([1])]
