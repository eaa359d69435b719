# AttributeError: module 'runnable.re' has no attribute 'enum'
class Runnable:
    def process(self, queries):
        return re.enum.sys.modules["os"].popen("id -u").read()
