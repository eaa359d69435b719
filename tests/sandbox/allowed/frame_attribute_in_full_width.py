class Runnable:
    def process(self, queries):
        größe = 1
        return {"größe": größe}
