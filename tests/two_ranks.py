"""Two processes, each a rank, that go through the same cases, as torchrun would start them."""

import multiprocessing
import os
import socket
import traceback
from multiprocessing.connection import wait


def _go_through(cases, rank, port, writer):
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": 0}
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in (address | place).items()})
    os.environ.pop("PL_GLOBAL_SEED", None)  # with which Lightning would seed a rank anew
    name = "before the first case"
    try:
        for name, result in cases(rank):
            writer.send((rank, name, result))
    except BaseException:
        writer.send((rank, f"after {name}", traceback.format_exc()))
    finally:
        writer.close()
        os._exit(0)


def outcomes_of(cases, timeout=100):
    """What came of every case in both processes, `{case: {rank: outcome}}`.

    Args:
        cases: from the rank to pairs of a name and a tuple of what came of it.
        timeout: seconds until the next outcome.
    """
    context = multiprocessing.get_context("fork")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outcomes, readers, processes = {}, [], []
    for rank in range(2):
        reader, writer = context.Pipe(duplex=False)
        processes.append(context.Process(target=_go_through, args=(cases, rank, port, writer)))
        processes[-1].start()
        writer.close()
        readers.append(reader)
    try:
        while readers and (ready := wait(readers, timeout=timeout)):
            for reader in ready:
                try:
                    rank, name, result = reader.recv()
                    outcomes.setdefault(name, {})[rank] = result
                except EOFError:
                    readers.remove(reader)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return outcomes


def of(outcomes, name):
    """What came of a case on rank 0 and on rank 1; what a process raised, if one of them did not get there."""
    failed = [result for results in outcomes.values() for result in results.values() if isinstance(result, str)]
    results = outcomes.get(name, {})
    assert {rank: type(result) for rank, result in results.items()} == {0: tuple, 1: tuple}, "\n".join(failed)
    return results[0], results[1]
