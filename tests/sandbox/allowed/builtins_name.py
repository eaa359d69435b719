class Runnable:
    def process(self, queries):
        print = logger.info
        list = tuple
        print("quiet")
        return [list([1]), max([1, 2]), sum([1]), any([0]), divmod(7, 2), pow(2, 3), hex(10), chr(97), ord("a"), bin(2), round(2.567, 1)]
