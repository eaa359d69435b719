# E202 the attribute 'tb_frame' is not allowed
class Runnable:
    def process(self, queries):
        class Manager:
            def __enter__(self):
                return self

            def __exit__(self, kind, err, trace):
                return trace.tb_frame

        with Manager():
            1 / 0
