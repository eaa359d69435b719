import heapq
from functools import total_ordering


@total_ordering
class Job:
    def __init__(self, at):
        self.at = at

    def __eq__(self, other):
        return self.at == other.at if isinstance(other, Job) else NotImplemented

    def __lt__(self, other):
        return self.at < other.at if isinstance(other, Job) else NotImplemented


class Late(Job):
    def __lt__(self, other):
        return Job.__lt__(self, other) and super().__lt__(other)


class Runnable:
    def process(self, queries):
        heap = [[Job(3)], [Job(1)], [Job(2)]]
        heapq.heapify(heap)
        try:
            Job(1) < 2
        except TypeError as err:
            text = str(err)
        return [[heapq.heappop(heap)[0].at for _ in range(3)], [Job(1)] < [Job(2)], Job(1) != 1, Job(2) >= Job(1), text,
                Late(1) < Job(2), sorted([[Late(2), 1], [Late(1), 2]])[0][1], max([Job(1), Job(5)], key=lambda job: -job.at).at]
