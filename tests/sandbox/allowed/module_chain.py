class Runnable:
    def process(self, queries):
        return re.findall(r"\d+", "a1b22")
