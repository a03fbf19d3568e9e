"""`python -m services.api`: reads the settings, serves until a signal, drains, ends."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from services.api import logs
from services.api.settings import DEMO_MODEL, Settings, SettingsError, is_loopback, read_settings

log = logging.getLogger("medthink")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 after a clean end, 1 when it could not start; the cause is one log line."""
    flags = {name: value for name, value in vars(_parser().parse_args(arguments)).items() if value is not None}
    try:
        settings = read_settings(**flags)
    except SettingsError as error:
        logs.configure("auto", "info")
        for line in str(error).splitlines():
            log.error(line)
        return 1
    logs.configure(settings.log_format, settings.log_level)
    # What is registered first runs last at exit. multiprocessing waits there for its children, the engine's process among
    # them, and vLLM ends that one in a finalizer: so it has to come before anything that makes finalizers (SQLAlchemy).
    importlib.import_module("multiprocessing.util")
    try:
        return asyncio.run(_serve(settings)) if sys.platform == "win32" else _run_on_uvloop(settings)
    except KeyboardInterrupt:
        return 0


def _parser() -> argparse.ArgumentParser:
    """A few settings that people type; every other one is in the environment."""
    parser = argparse.ArgumentParser(
        prog="python -m services.api", description="Serves the model. Settings: MEDTHINK_*, see deploy/env.example."
    )
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on")
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate chain, PEM: serve https")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")
    parser.add_argument(
        "--insecure", action="store_const", const=True, help="listen beyond loopback although no key is asked for"
    )
    return parser


def _run_on_uvloop(settings: Settings) -> int:
    import uvloop

    code: int = uvloop.run(_serve(settings))
    return code


async def _serve(settings: Settings) -> int:
    from services.api.engine.model_files import QWEN, ModelError, find_model, has_gpu, read_model

    gpu = has_gpu()
    name = settings.model or (QWEN if gpu else str(DEMO_MODEL))
    log.info("[1/4] model", extra=logs.fields(model=name, device="gpu" if gpu else "cpu"))
    try:
        files = read_model(await asyncio.to_thread(find_model, name, settings.model_source))
        model, build = _load(settings, files, gpu)
    except ModelError as error:
        log.error(str(error))
        return 1
    except ImportError as error:
        log.error(f"a package is missing ({error}): run make install")
        return 1
    scheme = "https" if settings.tls_cert else "http"
    log.info("[2/4] HTTP server", extra=logs.fields(address=f"{scheme}://{settings.host}:{settings.port}"))
    if files.demo:
        log.warning(f"DEMO MODEL: {files.demo}")
    return await _run(settings, model, build)


def _load(settings: Settings, files: Any, gpu: bool) -> Any:
    """The model's parts without its weights, and the function that builds the app: both need the installed packages."""
    from tokenizers import Tokenizer

    from services.api.app import Model, build
    from services.api.engine.model_files import ModelError
    from services.api.engine.vllm import AdapterLimits, VllmEngine, VllmOptions, prepare_environment
    from services.contract.chat_format import ChatFormat, ChatFormatError

    options = VllmOptions(
        model_dir=files.folder,
        served_name=settings.served_model_name,
        max_model_len=min(settings.max_model_len, files.max_positions),
        gpu=gpu,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        kv_cache_gib=settings.kv_cache_gib,
        max_num_seqs=settings.max_num_seqs or (0 if gpu else 32),
        adapters=_adapter_limits(settings, AdapterLimits),
        extra=json.loads(settings.engine_args),
    )
    prepare_environment(options, settings.log_level)
    try:
        chat_format = ChatFormat.load(Path(files.folder), Tokenizer.from_str)
    except ChatFormatError as error:
        raise ModelError(f"{error}: MedThink serves models with Qwen3's tokenizer") from error
    tokenizer = Tokenizer.from_file(str(Path(files.folder) / "tokenizer.json"))
    engine = VllmEngine(options)
    return Model(engine, chat_format, tokenizer.id_to_token, files.sampling_defaults, files.demo, files.config), build


def _adapter_limits(settings: Settings, limits: Any) -> Any:
    """Limits for the engine, or None without a volume. The default volume is made on first use."""
    from services.api.adapters.cache import clear_left_copies

    if settings.adapter_volume is None:
        return None
    if not settings.adapter_cache:
        clear_left_copies(settings.adapter_copies)
    if settings.adapters == "adapters":
        settings.adapter_volume.mkdir(exist_ok=True)
    return limits(settings.max_adapter_rank, settings.max_adapters_in_batch, settings.max_adapters_loaded)


async def _run(settings: Settings, model: Any, build: Any) -> int:
    import uvicorn

    from services.api.access.keys import KeysFileError
    from services.api.ehr.clients import ClientsError
    from services.api.memory.errors import SessionError
    from services.api.safety.policy import PolicyError

    failures: list[Exception] = []

    class Server(uvicorn.Server):
        """Drains on the first signal; uvicorn alone would close its doors at once and /readyz with them."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(on_signal, sig)

    loop = asyncio.get_running_loop()
    draining: list[asyncio.Task[None]] = []

    def on_signal(sig: int) -> None:
        if draining:
            log.warning("second signal: ending now")
            server.should_exit = server.force_exit = True
            return
        log.info("draining", extra=logs.fields(signal=signal.Signals(sig).name, active=service.admission.active))
        draining.append(loop.create_task(drain()))

    async def drain() -> None:
        service.admission.close()
        if not await service.admission.wait_until_idle(settings.drain_s):
            log.warning(
                "drain time is over, ending running streams", extra=logs.fields(active=service.admission.active)
            )
            await service.supervisor.stop()  # their streams end with an error frame
            await service.admission.wait_until_idle(5.0)
        server.should_exit = True

    def on_failure(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    def on_ready(seconds: float) -> None:
        # What the start has made stays: the collector need not walk through it at every full collection.
        gc.collect()
        gc.freeze()
        log.info("[4/4] ready", extra=logs.fields(seconds=round(seconds, 1)))
        _announce(settings, server, model.demo is not None)

    try:
        service = build(settings, model, on_ready=on_ready, on_failure=on_failure)
    except KeysFileError as refused:
        log.error("keys: %s", refused)
        return 1
    except ClientsError as refused:
        log.error("ehr: %s", refused)
        return 1
    except (PolicyError, OSError) as refused:
        for line in str(refused).splitlines():
            log.error("safety: %s", line)
        return 1
    except SessionError as refused:
        log.error("memory: %s", refused.message)
        return 1
    if settings.safety_profile != "default":
        log.warning("SAFETY PROFILE %r: replies are not guarded as patients need it", settings.safety_profile)
    if settings.insecure and not settings.keys and not settings.keys_file and not is_loopback(settings.host):
        log.warning(f"INSECURE: whoever reaches {settings.host} may use this server, no key is asked for")
    try:
        server = Server(http_config(settings, service.app))
    except OSError as refused:  # ssl.SSLError is one
        log.error(
            f"TLS: the certificate or its key cannot be used ({refused}): check MEDTHINK_TLS_CERT and MEDTHINK_TLS_KEY"
        )
        return 1
    log.info("[3/4] engine: loading the weights and warming up; /livez answers, /readyz will")
    try:
        await server.serve()
    except SystemExit:  # uvicorn's answer to a port that is taken
        log.error(f"cannot listen on {settings.host}:{settings.port}: choose another with PORT= or MEDTHINK_PORT")
        return 1
    for error in failures:
        what = "the memory cannot be used" if isinstance(error, SessionError) else "the engine did not start"
        log.error(f"{what}: {_first_line(error)}", extra=logs.fields(kind=type(error).__name__))
    log.info("ended")
    _let_foreign_lines_out()
    return 1 if failures or not server.started else 0


def http_config(settings: Settings, app: Any) -> Any:
    """uvicorn's configuration, loaded. Raises `OSError` when a certificate cannot be used."""
    import uvicorn

    from services.api.http.protocol import bounded_protocol

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        loop="none",
        http=bounded_protocol(settings.max_header_bytes),
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=5,
        backlog=2048,
        server_header=False,
        # Told outright: left to itself uvicorn believes any proxy on this machine, and a variable of the environment.
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=list(settings.proxies),
        ssl_certfile=settings.tls_cert or None,
        ssl_keyfile=settings.tls_key or None,
    )
    config.load()
    return config


def _announce(settings: Settings, server: Any, demo: bool) -> None:
    """URL, model and a line to paste. The port is asked of the socket: 0 means any free one."""
    port = settings.port
    for listener in server.servers:
        for socket in listener.sockets:
            port = socket.getsockname()[1]
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    url = f"{'https' if settings.tls_cert else 'http'}://{host}:{port}"
    question = "左心室EF值35%是什么意思？"
    body = {"model": settings.served_model_name, "stream": True, "messages": [{"role": "user", "content": question}]}
    key = " -H 'Authorization: Bearer KEY'" if settings.keys or settings.keys_file else ""
    shown = json.dumps(body, ensure_ascii=False)
    try_it = f"curl -N {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{shown}'"
    name = f"{settings.served_model_name}{' (DEMO MODEL, not medicine)' if demo else ''}"
    log.info(f"serving {name} at {url}", extra=logs.fields(url=url))
    log.info(f"try: {try_it}")


def _first_line(error: Exception) -> str:
    """One line for the operator. Of an engine process that failed only its own output knows why."""
    cause = logs.last_foreign_cause() if "root cause" in str(error) else None
    if cause is not None:
        return cause[:300]
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _let_foreign_lines_out() -> None:
    """Gives the thread that reads children's last words a moment; it ends with the process."""
    for thread in threading.enumerate():
        if thread.name == "foreign-lines":
            thread.join(timeout=0.2)


if __name__ == "__main__":
    sys.exit(main())
