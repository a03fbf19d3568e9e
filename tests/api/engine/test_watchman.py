"""A killed server leaves no process of its engine behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil

from services.api.engine.watchman import Watchman, born, descendants
from tests.fakes import ROOT

# A server with an engine's process below it, which has one below itself; it prints their numbers and its watchman's.
SERVER = """
import os, subprocess, sys, time
from services.api.engine.watchman import Watchman, descendants
nest = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", nest])
while len(descendants(os.getpid())) < 2:
    time.sleep(0.02)
watched = descendants(os.getpid())
print(*watched, Watchman(watched).pid, flush=True)
time.sleep(600)
"""


def test_after_a_kill_nothing_is_left() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pids = [int(pid) for pid in server.stdout.readline().split()]
        below = [psutil.Process(pid) for pid in pids]
        assert len(below) == 3
        server.send_signal(signal.SIGKILL)
        server.wait()
        _, alive = psutil.wait_procs(below, timeout=20)
        assert alive == []


def test_who_is_dismissed_ends_what_is_left_and_nothing_else() -> None:
    watched, other = (subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(2))
    watchman = Watchman([watched.pid, 2**22 + 1])
    assert watched.poll() is None
    watchman.dismiss()
    assert watched.wait(timeout=20) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_number_that_another_process_has_now_is_left_alone() -> None:
    assert born(os.getpid()) is not None
    assert born(2**22 + 1) is None
    assert os.getpid() not in descendants(os.getpid())
