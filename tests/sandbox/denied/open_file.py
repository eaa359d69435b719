# E202 'open' is not allowed. A Runnable has no files
class Runnable:
    def process(self, queries):
        return open("/etc/passwd").read()
