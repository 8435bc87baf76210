"""Two processes that stay for all tests of a module, for what only several ranks show."""

import os
import traceback
from contextlib import contextmanager
from multiprocessing import set_start_method

import torch
from started import SERVER
from support import free_port

from opsin.train.build import build_run
from opsin.train.distributed import connect
from opsin.train.loop import Callback, fit
from opsin.train.state import save

__all__ = ["Halt", "train", "two_ranks"]


class Halt(Callback):
    """Saves after an update and stops there, on all ranks."""

    every_rank = True

    def __init__(self, update):
        self.update = update

    def on_update(self, run, loss):
        if run.update == self.update:
            save(run)
            raise KeyboardInterrupt


def train(config, world, callbacks=()):
    run = build_run(config, world, callbacks=callbacks)
    try:
        fit(run)
    finally:
        run.directory.close()
    return run


@contextmanager
def two_ranks():
    """A function `both`: `both(job, *args)` is what `job(world, *args)` returns in two processes, which stay."""
    ranks = []

    def start():
        for rank in range(2):
            ours, theirs = SERVER.Pipe()
            ranks.append((ours, SERVER.Process(target=serve, args=(rank, theirs))))
            ranks[-1][1].start()

    def stop():
        for _, process in ranks:
            process.kill()
            process.join()
        ranks.clear()

    def call(job, *args):
        if not ranks:
            start()
        port, found = free_port(), []
        for pipe, _ in ranks:
            pipe.send((job, port, args))
        for pipe, _ in ranks:
            if not pipe.poll(120):
                stop()  # the next test begins with new ones
                raise AssertionError("a rank waits for ever")
            found.append(pipe.recv())
        assert all(good for good, _ in found), found
        return [result for _, result in found]

    yield call
    stop()


def serve(rank, pipe):
    torch.set_num_threads(1)
    set_start_method("fork", force=True)  # of data workers, as in any process
    while True:
        job, port, args = pipe.recv()
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
        try:
            with connect("cpu") as world:
                pipe.send((True, job(world, *args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
