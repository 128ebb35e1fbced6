"""Commands in processes of their own that need not import torch anew: each forks off a server that has done it once.

What a test wants of a process is all there: its own working directory, environment, modules of ours, exit code and
exit handlers. A test of starting up, or of signals, starts a Python of its own instead.
"""

import atexit
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

HEAVY = ["torch", "torch._dynamo", "transformers", "datasets", "accelerate", "trl", "scipy.stats"]
"""Libraries that take seconds to import, and nothing of ours: what our modules do at import happens in each command."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(HEAVY)


def run_module(
    module: str, *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """Run `python -m module arguments…` and return its exit code and what it printed.

    Args:
        module: name of the module.
        arguments: of the command line.
        cwd: working directory; None: this process's.
        env: all environment variables; None: this process's. What the heavy libraries read when they are imported
            comes too late, but OMP_NUM_THREADS.
    """
    command = [module, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _server.Process(
            target=_run, args=(command, os.fspath(cwd or Path.cwd()), dict(env or os.environ), *map(str, files))
        )
        process.start()
        process.join()
        printed = [file.read_text() for file in files]
    assert process.exitcode is not None
    return CompletedProcess(command, process.exitcode, *printed)


def _run(command: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> None:
    """Run a module as the main one, in the forked process."""
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if threads := env.get("OMP_NUM_THREADS"):
        sys.modules["torch"].set_num_threads(int(threads))
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a forked process ends without them
