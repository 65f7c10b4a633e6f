"""The jobs of a sweep on a Ray cluster. All workers use the cached stages in a shared folder."""

import dataclasses
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .cells import Session, run_job
from .grid import Cell, Job

__all__ = ["run_on_cluster"]

logger = logging.getLogger(__name__)

# This number limits the retries of a job whose worker dies. The job continues on another worker, from its stages and
# checkpoints.
_MAX_RETRIES = 3


def run_on_cluster(
    session: Session,
    rounds: list[list[Job]],
    on_record: Callable[[Cell, dict], None],
    *,
    address: str,
    n_cpus: float,
    n_gpus: float,
    accelerate_config: str | None = None,
) -> None:
    """
    Runs jobs on an existing cluster, as many at a time as its resources allow.

    Args:
        session ([`Session`]): Its output directory is in a folder that all machines share under this path.
        rounds: The jobs from [`w2s_hf.sweep.grid.rounds_of`]. Each round is finished before the next one starts.
        on_record (`Callable`): Called with each cell and its record.
        address (`str`): The address of the cluster, such as `ray://HOST:PORT`. `auto` is the cluster of this machine.
        n_cpus, n_gpus (`float`): Resources of a job.
        accelerate_config (`str`, *optional*): Launch every job with accelerate and this configuration.

    Raises:
        ConnectionError: No cluster runs at this address.
        ValueError: Ray is not installed, or no machine has the resources of a job.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError(
            'Got --engine ray without Ray. Install it: pip install -c constraints.txt -e ".[ray]"'
        ) from error
    if not ray.is_initialized():
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConnectionError(
                f"--ray_address: got {address!r}, where no cluster was found ({error}). Start one with "
                "`ray start --head` on one machine and `ray start --address HOST:6379` on the other machines."
            ) from error
    work = ray.remote(_work).options(num_cpus=n_cpus, num_gpus=n_gpus, max_retries=_MAX_RETRIES)
    # The demo's models are built once if this directory is in the shared folder, and otherwise on each machine. Tokens
    # and caches of the Hub are specific to each machine.
    variables = {name: os.environ[name] for name in ("W2S_HF_CACHE",) if name in os.environ}
    settings = (session.for_others(), variables, accelerate_config)
    _refuse_too_much(ray.nodes(), {"CPU": n_cpus, "GPU": n_gpus})
    for jobs in rounds:
        pending = {work.remote(_as_dict(job), *settings): job for job in jobs}
        waiting = {cell for job in jobs for cell in job.cells if not job.only_supervisors}
        try:
            while pending:
                finished, _ = ray.wait(list(pending), timeout=1)
                for reference in finished:
                    job = pending.pop(reference)
                    try:
                        ray.get(reference)
                    except ray.exceptions.RayError as error:
                        logger.warning(f"A job of {len(job.cells)} cells was lost: {error}")
                        for cell in waiting & set(job.cells):
                            if session.read(cell) is None:
                                session.write(cell, session.failure(cell, error))
                for cell in list(waiting):
                    record = session.read(cell)
                    if record is not None:
                        waiting.remove(cell)
                        on_record(cell, record)
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)


def _refuse_too_much(nodes: list[dict], wanted: dict[str, float]) -> None:
    """Raises `ValueError` if no machine has the resources of a job, since Ray would wait for such a machine."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(node.get(name, 0) >= n for name, n in wanted.items()) for node in resources):
        most = {name: max((node.get(name, 0) for node in resources), default=0) for name in wanted}
        raise ValueError(
            f"Got --cell_cpus {wanted['CPU']:g} and --cell_gpus {wanted['GPU']:g}, expected at most the "
            f"{most['CPU']:g} CPUs and {most['GPU']:g} GPUs of the largest machine of the cluster. Set smaller values."
        )


def _reach(address: str) -> None:
    """Raises `OSError` if no server listens, since Ray would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _as_dict(job: Job) -> dict:
    return {"cells": [dataclasses.asdict(cell) for cell in job.cells], "only_supervisors": job.only_supervisors}


def _work(job: dict, session: dict, variables: dict[str, str], accelerate_config: str | None) -> None:
    """Runs a job on a worker. The records of its cells are written to the shared folder."""
    os.environ.update(variables)
    here = Session(**session)  # raises an error if this machine runs other code
    if accelerate_config is None:
        logging.getLogger("w2s_hf").setLevel(logging.INFO)
        return run_job(here, Job(tuple(Cell(**cell) for cell in job["cells"]), job["only_supervisors"]))
    path = Path(session["output_dir"]) / "jobs" / f"{Cell(**job['cells'][0]).name}-{os.getpid()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"session": session, **job}))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", accelerate_config]
    launch += ["--main_process_port", "0"]  # any free port: a machine may run several jobs
    process = subprocess.Popen([*launch, "-m", "w2s_hf.sweep.cells", str(path)])
    try:
        if process.wait():
            raise RuntimeError(
                f"accelerate launch ended with exit code {process.returncode}. See its log on {os.uname().nodename}."
            )
    finally:
        process.kill()  # if this worker was stopped
