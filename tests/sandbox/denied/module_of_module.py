# AttributeError: module 'runnable.json' has no attribute 'codecs'
class Runnable:
    def process(self, queries):
        return json.codecs.open("/etc/hostname").read()
