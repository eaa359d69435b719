class Runnable:
    def process(self, queries):
        import io

        file = io.StringIO()
        print("a", "b", sep="-", file=file)
        with io.StringIO("line 1\nline 2\n") as lines:
            return [file.getvalue(), [line.strip() for line in lines]]
