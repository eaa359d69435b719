# E202 'gi_frame' in a class pattern is not allowed. Test it in the case's 'if'.
class Runnable:
    def process(self, queries):
        match (number for number in [1]):
            case object(gi_frame=frame):
                return frame.f_globals
