# E202 the attribute '__traceback__' is not allowed. Use logger.exception
class Runnable:
    def process(self, queries):
        try:
            1 / 0
        except ZeroDivisionError as err:
            return err.__traceback__.tb_frame
