"""Functions in processes of their own, which end together.

Knows functions and their arguments, nothing of texts.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait

from utils.errors import UserError, name_disk_errors


def run_workers(work: Callable, jobs: list[tuple]) -> list:
    """`work(*job)` for each job, in one process each; returns the results in the order of the jobs.

    All end with the first that fails, and with this process, also where it is killed. Raises the UserError of a
    worker, and UserError for one that was killed.
    """
    context = multiprocessing.get_context("spawn")  # the threads of a tokenizer do not survive a fork
    workers, receivers, results = [], {}, {}
    try:
        for number, job in enumerate(jobs):
            receiver, sender = context.Pipe(duplex=False)
            receivers[receiver] = number
            workers.append(context.Process(target=_run, args=(sender, work, job), daemon=True))
            workers[-1].start()
            sender.close()
        while receivers:
            for receiver in wait(list(receivers)):
                number = receivers.pop(receiver)
                results[number] = _receive(receiver, number)
    finally:
        for worker in workers:
            worker.terminate()
    return [results[number] for number in range(len(jobs))]


def _run(sender: Connection, work: Callable, job: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and with it this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with name_disk_errors():
            sender.send(work(*job))
    except UserError as error:
        sender.send(error)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _receive(receiver: Connection, number: int) -> object:
    try:
        result = receiver.recv()
    except EOFError as error:
        reason = "was killed, perhaps because memory was full, or failed as it says above"
        raise UserError(f"process {number} {reason}; start again with --resume_from_checkpoint") from error
    if isinstance(result, UserError):
        raise result
    return result
