"""Does a job on a cluster that was started apart survive what happens to clusters?

One job of 324 blocks: two workers; one is killed, one joins and soon retires, the scheduler is killed and started again. Then workers that
cannot do the job: without the model (it is sent to them), the scene or the output's folder, or with another version. Then encrypted
connections. Where namespaces allow, workers have a mount namespace and a host name of their own, as another host would.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deployment import Deployment, wait_until
from faults import Faults
from jobs import COMPLETE, MISMATCH, ROOT, Ended, Job, command, files_of, journal_blocks, make_job, reference, started
from tables import parser, publish

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    Row = tuple[str, str, bool]

SIDE_PX = 18 * 64 - 7
N_BLOCKS = 18 * 18
HERE = ("--device", "cpu", "--threads", "1", "--block-timeout", "60")
USAGE = 2
HOST = ("unshare", "--mount", "--uts")
"""What starts a process that sees other mounts and has another host name."""


def on(cluster: Deployment, job: Job, out: Path) -> list[str]:
    """Return the command line of the job on a cluster."""
    return command(*job.segment(out, *HERE, "--scheduler", cluster.file))


def run_on(cluster: Deployment, job: Job, out: Path, environment: dict[str, str] | None = None) -> Ended:
    """Run the job on a cluster to its end."""
    words = on(cluster, job, out)
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT, env=environment)
    return Ended(code=ended.returncode, stdout=ended.stdout, stderr=ended.stderr)


def storm(job: Job, folder: Path, expected: dict[str, bytes]) -> Row:
    """Kill a worker, add one, start the scheduler again and retire a worker, in the middle of one command."""
    out, faults = folder / "storm.zarr", Faults.make(folder / "faults")
    second = (*HOST, "sh", "-c", 'hostname other-host; exec "$@"', "sh") if has_namespaces() else ()
    with Deployment(folder / "cluster", faults.environment()) as cluster:
        cluster.start_scheduler()
        cluster.start_worker("one")
        cluster.start_worker("two", prefix=second)
        with started(on(cluster, job, out)) as client:

            def done(n_blocks: int) -> Callable[[], bool]:
                return lambda: len(journal_blocks(out)) >= n_blocks or client.poll() is not None

            wait_until(done(40))
            cluster.kill("nanny", "one")
            wait_until(done(80))
            cluster.start_worker("three", more=("--lifetime", "8 seconds"))  # retires by itself, as on a spot machine
            wait_until(done(140))
            cluster.kill("scheduler")
            cluster.heal()
            wait_until(lambda: client.poll() is not None, patience_s=240)
            code = client.returncode
    lines = journal_blocks(out)
    n_again = sum(faults.calls().values()) - N_BLOCKS
    is_right = code == COMPLETE and files_of(out) == expected and len(set(lines)) == len(lines) == N_BLOCKS
    told = (
        f"exit code {code}, {'byte-identical' if is_right else 'NOT as it should be'}, {n_again} of {N_BLOCKS} blocks begun again"
    )
    return (
        "one worker killed, one added that leaves after 8 s, the scheduler killed and started again, in one command",
        told,
        is_right,
    )


@contextmanager
def two_workers(folder: Path, *, prefix: tuple[str, ...], environment: dict[str, str] | None = None) -> Iterator[Deployment]:
    """Start a cluster whose workers all begin with ``prefix``."""
    with Deployment(folder, environment) as cluster:
        cluster.start_scheduler()
        for name in ("one", "two"):
            cluster.start_worker(name, prefix=prefix)
        for name in ("one", "two"):
            cluster.wait_for_worker(name)
        wait_until(lambda: n_workers(cluster) == 2)
        yield cluster


def n_workers(cluster: Deployment) -> int:
    """Return how many workers the scheduler knows."""
    from distributed import Client

    with Client(scheduler_file=str(cluster.file), timeout=20) as client:
        return len(client.nthreads())


def hidden(*places: Path) -> tuple[str, ...]:
    """Return what starts a process that sees empty folders in those places."""
    mounts = "; ".join(f"mount -t tmpfs none '{place}'" for place in places)
    return (*HOST, "sh", "-c", f'hostname other-host; {mounts}; exec "$@"', "sh")


def unfit(job: Job, folder: Path, expected: dict[str, bytes]) -> list[Row]:
    """Ask workers that lack something."""
    rows: list[Row] = []
    (folder / "model").mkdir()
    model = Path(shutil.copy(job.model, folder / "model"))
    (folder / "scene").mkdir()
    scene = Path(shutil.copy(job.scene, folder / "scene"))
    apart = Job(scene=scene, model=model, options=job.options)
    with two_workers(folder / "no-model", prefix=hidden(folder / "model")) as cluster:
        ended = run_on(cluster, apart, folder / "sent.zarr")
        same = ended.code == COMPLETE and chunks(folder / "sent.zarr") == chunks_of(expected)
        is_right = same and "the model is sent" in ended.stderr
        rows.append(
            ("workers that do not see the model", "it is sent to them; byte-identical" if is_right else ended.stderr, is_right)
        )
    (folder / "outputs").mkdir()
    for name, place, word in (("the scene", folder / "scene", "scene"), ("the output's folder", folder / "outputs", "run.json")):
        with two_workers(folder / f"without {name}", prefix=hidden(place)) as cluster:
            rows.append(refused(run_on(cluster, apart, folder / "outputs" / "out.zarr"), f"workers that do not see {name}", word))
    with two_workers(folder / "versions", prefix=(), environment=other_versions(folder)) as cluster:
        rows.append(refused(run_on(cluster, apart, folder / "outputs" / "out.zarr"), "workers with another zarr", "zarr 0.0.1"))
    return rows


def encrypted(job: Job, folder: Path, expected: dict[str, bytes]) -> list[Row]:
    """Run on a cluster that speaks TLS only, with its certificate and without."""
    folder.mkdir()
    environment = {**os.environ, "DASK_CONFIG": str(certificates(folder))}
    with Deployment(folder / "cluster", environment, protocol="tls") as cluster:
        cluster.start_scheduler()
        cluster.start_worker("one")
        ended = run_on(cluster, job, folder / "out.zarr", environment)
        without = run_on(cluster, job, folder / "never.zarr")
    same = ended.code == COMPLETE and files_of(folder / "out.zarr") == expected
    refused = without.code == USAGE and "no Dask scheduler answers" in without.stderr and not (folder / "never.zarr").exists()
    return [
        ("TLS with certificates of an own authority", "exit code 0, byte-identical" if same else ended.stderr, same),
        (
            "TLS, a client without certificate",
            f"exit code {without.code}, nothing written" if refused else without.stderr,
            refused,
        ),
    ]


def certificates(folder: Path) -> Path:
    """Make an authority and a certificate, and return the folder with Dask's configuration for them."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    authority = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial")
    for words in (
        ("req", "-x509", *key, "-days", "2", "-subj", "/CN=authority", "-keyout", "ca-key.pem", "-out", "ca.pem"),
        ("req", *key, "-subj", "/CN=dask", "-keyout", "key.pem", "-out", "dask.csr"),
        ("x509", "-req", "-in", "dask.csr", *authority, "-days", "2", "-out", "dask.pem"),
    ):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)
    own = {"cert": str(folder / "dask.pem"), "key": str(folder / "key.pem")}
    tls = {"ca-file": str(folder / "ca.pem"), "scheduler": own, "worker": own, "client": own}
    (folder / "configuration").mkdir()
    text = json.dumps({"distributed": {"comm": {"require-encryption": True, "tls": tls}}})
    (folder / "configuration" / "tls.yaml").write_text(text)
    return folder / "configuration"


def chunks(out: Path) -> dict[str, bytes]:
    """Return the chunk files of an output; its metadata name the scene."""
    return chunks_of(files_of(out))


def chunks_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the chunk files among files."""
    return {key: data for key, data in files.items() if "/c/" in key}


def refused(ended: Ended, what: str, word: str) -> Row:
    """Tell whether a job was refused for the right reason."""
    reason = next((line for line in ended.stderr.splitlines() if line.startswith("error")), ended.stderr)
    is_right = ended.code == MISMATCH and word in reason
    return what, f"exit code {ended.code}, names {word.replace('run.json', 'the output')}" if is_right else reason, is_right


def other_versions(folder: Path) -> dict[str, str]:
    """Return the environment of a worker that has another zarr, by its metadata."""
    distribution = folder / "site" / "zarr-0.0.1.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: zarr\nVersion: 0.0.1\n")
    return {**os.environ, "PYTHONPATH": str(folder / "site")}


def has_namespaces() -> bool:
    """Tell whether this machine gives processes namespaces of their own."""
    return subprocess.run([*HOST, "true"], capture_output=True, check=False).returncode == 0


def run() -> list[Row]:
    """Do all; the promises that were kept are true."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = make_job(folder / "job", height=SIDE_PX, width=SIDE_PX)
        rows = [storm(job, folder, reference(job))]
        small = make_job(folder / "small")
        if has_namespaces():
            rows += unfit(small, folder, reference(small))
        if shutil.which("openssl"):
            rows += encrypted(small, folder / "tls", reference(small))
        return rows


def main(options: argparse.Namespace) -> int:
    """Print the table; 1 where a promise was broken."""
    rows = run()
    publish(
        options,
        name="cluster",
        columns=("on a scheduler and workers that were started apart", "what happened"),
        rows=[row[:2] for row in rows],
    )
    return 0 if all(row[2] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(parser(__doc__ or "", command="cluster.py").parse_args()))
