"""Turns on the wire: chunk frames or one JSON object, keep-alive, the error after a stream has begun, the client that leaves.

Raw ASGI on purpose: a framework's StreamingResponse costs more per event than the engine's own bookkeeping.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.api import logs, messages
from services.api.errors import ApiError, InternalError

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect the stream otherwise
}
ErrorHandler = Callable[[Exception], ApiError]


def data_frame(value: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def error_body(error: ApiError) -> bytes:
    """The envelope, in the language that the request prefers; the middleware says so in the headers."""
    request_id = logs.request_id.get()
    return orjson.dumps(error.envelope(request_id, messages.text_of(error, request_id)))


def timed_out_frames(error: ApiError, *, of_responses: bool) -> bytes:
    """What ends a stream that was stopped from outside: the error's frame and [DONE], or OpenAI's `error` event."""
    if not of_responses:
        return b"data: " + error_body(error) + b"\n\n" + DONE
    text = messages.text_of(error, logs.request_id.get())
    event = {"type": "error", "code": error.code, "message": text, "param": None, "sequence_number": 0}
    return b"event: error\n" + data_frame(event)


class ClientGone(Exception):
    """The client closed the connection; whatever was running for it was cancelled."""


async def until_client_leaves(receive: Receive, work: Awaitable[None]) -> None:
    """Runs `work`; cancels it, waits for its end and raises `ClientGone` when the client disconnects first."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            raise ClientGone
        await task
    finally:
        for running in (task, leaving):
            if not running.done():
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await running


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class JsonTurnResponse(Response):
    """Computes a body while watching for the client; `compute` is cancelled when the client leaves."""

    def __init__(
        self, compute: Callable[[], Awaitable[Mapping[str, Any]]], to_error: ErrorHandler, on_gone: Callable[[], None]
    ) -> None:
        super().__init__()
        self._compute = compute
        self._to_error = to_error
        self._on_gone = on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            try:
                body, status, headers = orjson.dumps(await self._compute()), 200, {}
            except Exception as error:  # noqa: BLE001 - mapped to an ApiError, and logged where it is ours
                known = self._to_error(error)
                body, status, headers = error_body(known), known.status, known.headers()
            await _send_json(send, body, status, headers)

        try:
            await until_client_leaves(receive, work())
        except ClientGone:
            self._on_gone()


def _last_frames(error: ApiError | None) -> bytes:
    return DONE if error is None else b"data: " + error_body(error) + b"\n\n" + DONE


async def _send_json(send: Send, body: bytes, status: int, headers: Mapping[str, str]) -> None:
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(k.encode(), v.encode()) for k, v in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


class EventStreamResponse(Response):
    """Sends frames as they come.

    Headers go out with the first frame, so that an error before it is a plain HTTP error; or after `keep_alive_s`
    without one, because proxies give up on a silent server. A comment frame follows each further silence.
    """

    def __init__(
        self,
        frames: Callable[[], AsyncGenerator[bytes, None]],
        to_error: ErrorHandler,
        on_gone: Callable[[], None],
        keep_alive_s: float,
        last: Callable[[ApiError | None], bytes] | None = None,
    ) -> None:
        """`last`: the final bytes, after an error or without one; left out: the error's frame and [DONE]."""
        super().__init__()
        self._last = last or _last_frames
        self._frames = frames
        self._to_error = to_error
        self._on_gone = on_gone
        self._keep_alive_s = keep_alive_s
        self._started = False
        self._sent_at = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        keep_alive = asyncio.create_task(self._keep_alive(send))
        try:
            await until_client_leaves(receive, self._work(send, keep_alive))
        except ClientGone:
            self._on_gone()
        finally:
            keep_alive.cancel()

    async def _work(self, send: Send, keep_alive: asyncio.Task[None]) -> None:
        try:
            async with contextlib.aclosing(self._frames()) as frames:
                async for frame in frames:
                    await self._write(send, frame)
            last = self._last(None)
        except Exception as error:  # noqa: BLE001 - mapped to an ApiError, and logged where it is ours
            known = self._to_error(error)
            if not self._started:
                keep_alive.cancel()
                await _send_json(send, error_body(known), known.status, known.headers())
                return
            last = self._last(known)
        keep_alive.cancel()
        await self._write(send, last, more=False)

    async def _write(self, send: Send, frame: bytes, more: bool = True) -> None:
        if not self._started:
            self._started = True
            raw = [(k.encode(), v.encode()) for k, v in STREAM_HEADERS.items()]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
        self._sent_at = time.monotonic()
        await send({"type": "http.response.body", "body": frame, "more_body": more})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            silent_s = time.monotonic() - self._sent_at
            if silent_s >= self._keep_alive_s:
                await self._write(send, KEEP_ALIVE)
                silent_s = 0.0
            await asyncio.sleep(self._keep_alive_s - silent_s)


def internal_error(error: Exception) -> ApiError:
    """For what nobody foresaw: logged with its trace, told without it."""
    log.error("unexpected error", exc_info=error)
    return InternalError(f"an internal error; the log has the details under request id {logs.request_id.get()}")
