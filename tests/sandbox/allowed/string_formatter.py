class Runnable:
    def process(self, queries):
        import string

        return [string.Template("$a and ${b}").substitute(a=1, b=2), string.ascii_lowercase[:3], string.capwords("a b")]
