"""An engine in one file: a pool of pretended workers that answer right below a mask ratio, in any order.

What a worker is given and gives back is pickled, as between processes.
"""

import pickle
import random

from hardsample.engines.protocol import RunInfo
from hardsample.engines.results import Completion, Failure


class ToyEngine:
    shows_attention = False
    processor = None
    right_below = 0.5
    refuses = ()
    stop_after = None

    def __init__(self, model, config, notice):
        self.model, self.config, self.notice = model, config, notice
        self.opened, self.most, self.asked = False, 0, []

    @classmethod
    def from_config(cls, model, config, notice=print):
        return cls(model, config, notice)

    def __enter__(self):
        self.opened = True
        return self

    def __exit__(self, *_):
        self.opened = False

    def identity(self):
        return {"engine": "toy", "model": self.model, "max_new_tokens": self.config.max_new_tokens or 7}

    def run(self, job):
        assert self.opened
        draw, under_way = random.Random(0), []
        while under_way or job.fills(1):
            while len(under_way) < self.config.concurrency and (requests := job.take(2)):
                under_way += [pickle.dumps(request) for request in requests]
                self.asked += [request.key for request in requests]
            self.most = max(self.most, len(under_way))
            draw.shuffle(under_way)
            request = pickle.loads(under_way.pop())
            job.settle([(request, self.answer(request))], len(under_way) + 1, "toying")
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
        type(self).last = self

    def answer(self, request):
        if request.record["id"] in self.refuses:
            return Failure("it is not to my taste", of_record=False)
        return Completion(request.record["solution"] if request.ratio < self.right_below else "no idea", [])

    def run_info(self):
        return RunInfo("toys", None, {"mask_pixels": "none"}, {"generate": 0.5}, {"asked": len(self.asked)})
