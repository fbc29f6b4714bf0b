"""Who trains the runs of a sweep: this process, others of this machine, or those of a Dask cluster."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from ..config import Config
from .rows import sentence

_PATIENCE = 5.0  # seconds to wait for the lock of a process that was killed a moment ago
_DIED = (
    "its process died, as when the system kills it or memory runs out. Use fewer jobs or a smaller batch, "
    "and run the sweep again."
)
_ONE_AT_A_TIME = threading.Lock()  # torch's and Pyro's state is the process's, whatever thread asks


class Task(NamedTuple):
    """The arguments of `work`: plain values only."""

    name: str
    config: dict[str, Any]
    path: str
    trust: bool


def train_all(
    tasks: Sequence[Task], jobs: int | None, retries: int
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """The name of each run, once, as they end, with what is new in its row.

    When a process dies, joblib's pool ends those beside it too, and does not tell which was the one.
    Whatever was under way is then tried by itself, so that a run that always dies takes no other along;
    none is given up before it died alone.
    """
    by_name, tried = {task.name: task for task in tasks}, Counter[str]()
    together, alone = list(by_name), list[str]()
    while together or alone:
        names = [alone.pop(0)] if alone else together
        together = [] if names is together else together
        left = dict.fromkeys(names)
        for name, result, deaths in _results([by_name[name] for name in names], jobs):
            del left[name]
            if result is not None and result["status"] != "again":
                yield name, {key: result[key] for key in ("status", "error", "metrics")}
                continue
            tried[name] += deaths
            if tried[name] > retries and (result is not None or len(names) == 1):
                error = _DIED if result is None else result["error"]
                yield name, {"status": "failed", "error": error}
            else:
                (alone if result is None else together).append(name)
        together += left


def work(name: str, config: dict[str, Any], path: str, trust: bool) -> dict[str, Any]:
    """Train one run, or go on with it; called in a worker.

    Returns:
        ``status``, ``error`` and ``metrics`` as of a `Row`, and ``run``, the name; status ``again`` where
        another try may end differently.
    """
    from ..runs import resume, train

    deadline = time.monotonic() + _PATIENCE
    status, error, metrics = "finished", "", {}
    with _ONE_AT_A_TIME:
        while True:
            try:
                if (Path(path) / "config.json").exists():
                    where = {"device": config["device"], "data_dir": config["data_dir"]}
                    metrics = resume(path, trust=trust, **where).metrics
                else:
                    metrics = train(Config.from_dict(config), path).metrics
            except BlockingIOError as raised:
                if time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
                status, error = "busy", sentence(raised)
            except Exception as raised:
                again = isinstance(raised, (OSError, MemoryError))
                # torch's of a GPU, which is no MemoryError
                again = again or type(raised).__name__ == "OutOfMemoryError"
                status, error = "again" if again else "failed", sentence(raised)
            return {"run": name, "status": status, "error": error, "metrics": metrics}


def _results(
    tasks: Sequence[Task], jobs: int | None
) -> Iterator[tuple[str, dict[str, Any] | None, int]]:
    """What `work` returned, as it comes, and 1; or None and how many processes died with the run.

    Ends early after such deaths: runs that had not begun are left out.
    """
    from concurrent.futures.process import BrokenProcessPool

    from joblib import Parallel, delayed

    backend = _dask() if jobs is None else None
    if backend is not None:
        yield from _over_dask(backend, tasks)
        return
    begun: dict[str, Task] = {}

    def begin() -> Iterator[Any]:
        for task in tasks:
            begun[task.name] = task
            yield delayed(work)(*task)

    # One run at a time goes to each process, so that those handed out are those under way.
    how = {"return_as": "generator_unordered", "batch_size": 1, "pre_dispatch": "n_jobs"}
    with _backend(jobs):
        parallel = Parallel(**how)
    try:
        with _closing_quietly(parallel(begin())) as results:
            for result in results:
                yield begun.pop(result["run"]).name, result, 1
    except BrokenProcessPool:
        from ..runs import is_finished

        for task in list(begun.values()):
            if is_finished(task.path):  # its result was lost with another's process
                yield task.name, work(*task), 1
            else:
                yield task.name, None, 1


def _backend(jobs: int | None) -> AbstractContextManager[Any]:
    """What ``jobs`` asks of joblib, or what the caller's `parallel_config` did."""
    from joblib import parallel_config

    if jobs is None:
        return nullcontext()
    if jobs == 1:
        return parallel_config("sequential", n_jobs=1)
    # joblib's own choice would share all cores among the processes.
    threads = None if "OMP_NUM_THREADS" in os.environ else 1
    return parallel_config("loky", n_jobs=jobs, inner_max_num_threads=threads)


@contextmanager
def _closing_quietly(results: Any) -> Iterator[Any]:
    """Without joblib's warning of results that an interrupt leaves behind."""
    try:
        yield results
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.close()


def _dask() -> Any:
    """joblib's Dask backend, where `parallel_config` chose it."""
    from joblib.parallel import get_active_backend

    backend = get_active_backend()[0]
    return backend if type(backend).__name__ == "DaskDistributedBackend" else None


def _over_dask(
    backend: Any, tasks: Sequence[Task]
) -> Iterator[tuple[str, dict[str, Any] | None, int]]:
    """`_results` by the backend's own client.

    joblib waits without end for a task that Dask gave up: the backend's `_collect` passes the error to a
    future that nobody reads, and does not call back.
    """
    from distributed import CancelledError, KilledWorker, as_completed

    client = backend.client
    futures = {
        client.submit(work, *task, pure=False, **backend.submit_kwargs): task.name for task in tasks
    }
    try:
        for future in as_completed(list(futures)):
            try:
                result, deaths = future.result(), 1
            except KilledWorker as error:
                result, deaths = None, error.allowed_failures + 1
            except CancelledError:  # the scheduler was restarted
                result, deaths = None, 1
            yield futures.pop(future), result, deaths
    finally:
        client.cancel(list(futures))
