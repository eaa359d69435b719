class Runnable:
    def process(self, queries):
        setattr(self, "x", 1)
        setattr(self, "_y", 2)
        delattr(self, "x")
        return [hasattr(self, "x"), getattr(self, "_y"), self._y, getattr(self, "z", "none")]
