"""vLLM's `AsyncLLM` behind the engine protocol; the only file that imports vllm, and only inside functions.

Written for vLLM 0.26 to 0.33: the names used here are the ones that those releases share.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.api.engine.base import (
    AdapterHandle,
    AdapterRefused,
    BadSampling,
    EngineDelta,
    EngineDied,
    EngineState,
    GenerationRequest,
    ModelInfo,
    Sampling,
    TokenAlternatives,
)
from services.api.engine.lane import LeanLane

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """Largest rank, adapters in one batch, and adapters loaded at a time. The GPU pays for rank x batch, used or not."""

    max_rank: int
    in_batch: int
    loaded: int


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What the engine is started with; `extra` are further `AsyncEngineArgs`, for experts."""

    model_dir: Path
    served_name: str
    max_model_len: int
    gpu: bool
    gpu_memory_utilization: float
    kv_cache_gib: float
    max_num_seqs: int
    adapters: AdapterLimits | None
    extra: dict[str, Any]


def prepare_environment(options: VllmOptions, log_level: str) -> None:
    """Variables that vLLM reads at import: no telemetry, no hub, quiet, sized for the machine. What is set already stays."""
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Its warnings are of options, a dozen at every start.
        "VLLM_LOGGING_LEVEL": "INFO" if log_level == "debug" else "ERROR",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # FlashInfer is not installed; without this 0.26 refuses to start
    }
    if not options.gpu:
        # The engine keeps its own process; this only lets it run the model itself instead of starting a third one.
        defaults["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # The front end needs a core too: with a thread on every core each step waits for whichever was interrupted.
        defaults["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) - 1))
        defaults |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "TORCH_LOGS": "-all"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


class VllmEngine:
    """One model on one `AsyncLLM`. `start` after `stop` loads it again."""

    def __init__(self, options: VllmOptions) -> None:
        self._options = options
        self._llm: Any = None
        self._lane: LeanLane | None = None
        self._state: EngineState = "stopped"
        self._info: ModelInfo | None = None

    @property
    def state(self) -> EngineState:
        if self._state == "ready" and self._llm is not None and self._llm.errored:
            self._state = "dead"
        return self._state

    @property
    def info(self) -> ModelInfo:
        if self._info is None:
            raise RuntimeError("the engine has not been started")
        return self._info

    async def start(self) -> None:
        self._state = "starting"
        try:
            # Loading blocks for seconds to minutes; /livez must answer meanwhile.
            self._llm = await asyncio.to_thread(self._load)
            self._info = self._describe()
            self._lane = LeanLane(self._llm)
            self._lane.install(self._llm)
        except BaseException:
            self._state = "stopped"
            raise
        self._state = "ready"

    async def stop(self) -> None:
        self._state = "stopped"
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)

    async def check(self, request: GenerationRequest) -> None:
        llm = self._running()
        try:
            tasks = await llm.get_supported_tasks()
            llm.input_processor.process_inputs(
                request.request_id, _engine_prompt(request), _sampling_params(request.sampling), supported_tasks=tasks
            )
        except ValueError as error:
            raise BadSampling(_client_message(error)) from error
        except Exception as error:
            raise _translated(error) from error

    async def load_adapter(self, adapter: AdapterHandle) -> None:
        llm = self._running()
        try:
            loaded = await llm.add_lora(_lora_request(adapter))
        except Exception as error:
            await self.unload_adapter(adapter)
            raise _refusal(error) from error
        if not loaded:
            await self.unload_adapter(adapter)
            raise AdapterRefused(f"the engine did not load {adapter.name}")

    async def unload_adapter(self, adapter: AdapterHandle) -> None:
        llm = self._running()
        try:
            await llm.remove_lora(adapter.engine_id)
        except Exception as error:
            raise _refusal(error) from error

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[EngineDelta, None]:
        llm, lane = self._running(), self._lane
        assert lane is not None
        try:
            queue = await llm.add_request(
                request.request_id,
                _engine_prompt(request),
                _sampling_params(request.sampling),
                lora_request=_lora_request(request.adapter),
                priority=request.priority,
            )
        except (asyncio.CancelledError, EngineDied):
            raise
        except Exception as error:
            raise _translated(error) from error
        finished = False
        try:
            async with contextlib.aclosing(lane.read(queue)) as bundles:
                async for ids, output in bundles:
                    delta = _delta(ids, output)
                    if delta.finish_reason == "abort" and self._state == "stopped":
                        # vLLM ends its streams as if somebody had aborted them.
                        raise EngineDied("the engine was stopped")
                    finished = delta.finish_reason is not None
                    yield delta
        finally:
            if not finished and not llm.errored:
                await llm.abort(queue.request_id, internal=True)

    def _running(self) -> Any:
        if self.state != "ready":
            raise EngineDied(f"the engine is {self.state}")
        return self._llm

    def _load(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        # The usage context sets vLLM's own defaults for batch sizes to those of its server.
        context = UsageContext.OPENAI_API_SERVER
        config = AsyncEngineArgs(**self._engine_args()).create_engine_config(context)
        # Free white space would let a weak model write nothing else until its tokens are spent. Set here, because the
        # field of a request does nothing (0.32), and the arguments refuse it for "auto", which is to stay: it falls back
        # on a second grammar library for what the first lacks.
        config.structured_outputs_config.disable_any_whitespace = True
        return AsyncLLM.from_vllm_config(config, usage_context=context)

    def _engine_args(self) -> dict[str, Any]:
        options = self._options
        args: dict[str, Any] = {
            "model": str(options.model_dir),
            "served_model_name": [options.served_name],
            "max_model_len": options.max_model_len,
            "load_format": "safetensors",
            "trust_remote_code": False,
            "enable_prefix_caching": True,
            "disable_log_stats": False,
            "use_tqdm_on_load": False,
        }
        if options.gpu:
            args["gpu_memory_utilization"] = options.gpu_memory_utilization
        else:
            args |= {
                "enforce_eager": True,  # compiling takes longer than a small model's first answers
                "dtype": "float32",  # measured: bfloat16 is faster for one stream, slower for eight
                "distributed_executor_backend": "uni",
                # Without a size vLLM asks for 92 % of the machine's memory, and refuses to start when that is not free.
                "kv_cache_memory_bytes": int(options.kv_cache_gib * 1024**3),
            }
        if options.max_num_seqs:
            args["max_num_seqs"] = options.max_num_seqs
        if options.adapters is not None:
            limits = options.adapters
            args |= {"enable_lora": True, "max_lora_rank": limits.max_rank, "max_loras": limits.in_batch}
            # One place more than the registry uses, so that the engine never evicts one by itself.
            args["max_cpu_loras"] = max(limits.loaded, limits.in_batch) + 1
            if not options.gpu:
                # vLLM's CPU kernels know no row without an adapter: in a mixed batch they index the base model's rows
                # by -1, and compute them with whatever lies in the last slot. So there are slots for all, and one more.
                args["max_loras"] = args["max_cpu_loras"]
        return args | options.extra

    def _describe(self) -> ModelInfo:
        import vllm

        config = self._llm.model_config
        return ModelInfo(
            max_model_len=config.max_model_len,
            vocab_size=config.get_vocab_size(),
            engine_version=vllm.__version__,
            device="gpu" if self._options.gpu else "cpu",
        )


def _lora_request(adapter: AdapterHandle | None) -> Any:
    """By keyword only: the struct's fields have moved between releases. Never in place: that reads the disk every step."""
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=adapter.name, lora_int_id=adapter.engine_id, lora_path=adapter.folder)


def _refusal(error: Exception) -> Exception:
    """A failed load or unload: a dead engine stays one, everything else is the adapter's fault."""
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, EngineDeadError):
        return EngineDied("the engine process is gone")
    return AdapterRefused(_client_message(error))


def _engine_prompt(request: GenerationRequest) -> dict[str, Any]:
    """The rendered form, which `generate` and `InputProcessor.process_inputs` take in every release since 0.26."""
    prompt: dict[str, Any] = {"type": "token", "prompt_token_ids": list(request.prompt_ids)}
    return prompt | ({"cache_salt": request.cache_salt} if request.cache_salt is not None else {})


def _sampling_params(sampling: Sampling) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    params: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "min_tokens": min(sampling.min_tokens, sampling.max_tokens),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": sampling.seed,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": list(sampling.stop_token_ids) or None,
        "logit_bias": dict(sampling.logit_bias) or None,
        "allowed_token_ids": list(sampling.allowed_token_ids) or None,
        "logprobs": sampling.logprobs,
        "detokenize": False,  # text is made where it is split, so that no tag or stop string is seen in halves
        "output_kind": RequestOutputKind.DELTA,
    }
    if sampling.grammar is not None:
        field = {"json_schema": "json"}.get(sampling.grammar.kind, sampling.grammar.kind)
        value = sampling.grammar.value
        if sampling.grammar.kind == "json_schema":
            value = json.dumps(value)
        elif sampling.grammar.kind == "json_object":
            value = True
        params["structured_outputs"] = StructuredOutputsParams(**{field: value})
    try:
        return SamplingParams(**params)
    except ValueError as error:
        raise BadSampling(_client_message(error)) from error


def _delta(ids: Sequence[int], output: Any) -> EngineDelta:
    """`ids` came before the output's own."""
    if output is None:
        return EngineDelta(ids)
    completion = output.outputs[0]
    return EngineDelta(
        token_ids=[*ids, *completion.token_ids] if ids else completion.token_ids,
        logprobs=_alternatives(completion.token_ids, completion.logprobs),
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        cached_tokens=output.num_cached_tokens or 0,
    )


def _alternatives(ids: Sequence[int], logprobs: Any) -> tuple[TokenAlternatives, ...]:
    if not logprobs:
        return ()
    found = []
    for token_id, at_token in zip(ids, logprobs, strict=True):
        ranked = sorted(at_token.items(), key=lambda item: item[1].rank or 0)
        best = tuple((i, p.logprob) for i, p in ranked)
        found.append(TokenAlternatives(sampled=at_token[token_id].logprob, top=best))
    return tuple(found)


def _client_message(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else "these sampling parameters are not possible"


def _translated(error: Exception) -> Exception:
    """vLLM's exceptions as the protocol's. Bad parameters are ValueError in 0.26 and VLLMClientError later.

    Only the error itself decides: a ValueError behind an `EngineGenerateError` is a fault inside vLLM, not the client's.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, EngineDeadError):
        return EngineDied("the engine process is gone")
    client_error = any(c.__name__ == "VLLMClientError" for c in inspect.getmro(type(error)))
    return BadSampling(_client_message(error)) if client_error or isinstance(error, ValueError) else error
