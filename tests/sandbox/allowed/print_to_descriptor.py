class Runnable:
    def process(self, queries):
        print("a", 1, sep=", ")
        print()
        logger.info("got %s of %d", "x", 2)
        logger.warning("plain")
        return "logged"
