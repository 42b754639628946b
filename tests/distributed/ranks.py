"""Processes that stay: functions run in all of them at once, and what they return comes back."""

import socket
import traceback
from datetime import timedelta

import torch
from torch import multiprocessing

TIMEOUT = 60  # seconds in which every answer has to be there


class RankError(Exception):
    """What a process raised, with its rank."""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def serve(rank, size, port, pipe):
    import pyro
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=20),
    )
    pyro.enable_validation(True)
    while True:
        function, args = pipe.recv()
        pyro.clear_param_store()
        pyro.set_rng_seed(100 + rank)  # nothing is equal by chance
        try:
            answer = "done", function(*args)
        except Exception as error:
            answer = "raised", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        pipe.send(answer)


class Ranks:
    """Some processes in one group; they are forked from one that has imported what they run."""

    def __init__(self, size):
        self.size = size
        context = multiprocessing.get_context("forkserver")
        modules = ["checks", "rank_sums", "shared_mixtures"]
        preload = [f"tests.distributed.{name}" for name in modules]
        # What the first optimiser imports.
        context.set_forkserver_preload(["torch._dynamo", *preload])
        self.pipes, self.processes = [], []
        port = free_port()
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, size, port, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def answers(self, function, *args):
        """What every process answers: ("done", result) or ("raised", message)."""
        for pipe in self.pipes:
            pipe.send((function, args))
        found = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(TIMEOUT):
                raise RankError(f"rank {rank} did not answer in {TIMEOUT} s")
            found.append(pipe.recv())
        return found

    def __call__(self, function, *args):
        """Runs a function in every process and returns their results."""
        answers = self.answers(function, *args)
        for rank, (kind, result) in enumerate(answers):
            if kind == "raised":
                raise RankError(f"rank {rank}: {result}")
        return [result for _, result in answers]

    def close(self):
        for process in self.processes:
            process.kill()  # they hold nothing that wants to be closed
            process.join()
