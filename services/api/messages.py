"""Error messages in the reader's language: which one `Accept-Language` prefers, and the Chinese text of every code.

English is what the code raises. Chinese is a sentence for the code, with these values where it names them: `{where}` the field,
or the request; `{detail}` the English message, for what only it can say; `{request_id}`.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Literal

from services.api.errors import ApiError

Language = Literal["en", "zh"]
DEFAULT: Language = "en"

language: ContextVar[Language] = ContextVar("language", default=DEFAULT)

# RFC 9110, sections 12.4.2 and 12.5.4.
_RANGE = re.compile(r"(\*|[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*)(?:[ \t]*;[ \t]*[Qq]=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?))?")

ZH = {
    "invalid_request": "{where}的类型或取值不正确。详情：{detail}",
    "invalid_json": "请求体不是合法的 JSON，请检查后重发。详情：{detail}",
    "contradictory_parameters": "{where}与其他设置互相矛盾，请只保留其中一个。详情：{detail}",
    "unsupported_parameter": "{where}用了本服务不支持的参数或取值，请去掉或改用支持的写法。详情：{detail}",
    "context_length_exceeded": "消息太长，上下文里没有留给回复的空间，请缩短或减少消息。详情：{detail}",
    "invalid_session_id": "会话名不合规：须为 1 到 128 个字符，只能用英文字母、数字和 . _ : -，请换一个。",
    "invalid_metadata": "metadata 必须是一个 JSON 对象，且只含普通的 JSON 值。",
    "metadata_too_large": "metadata 太大，请减少内容。详情：{detail}",
    "invalid_ttl": "ttl_s（会话保留的秒数）超出允许范围。详情：{detail}",
    "invalid_cursor": "cursor 不是列表接口给出的游标，请去掉它，从第一页开始。",
    "invalid_idempotency_key": "请求头 Idempotency-Key 不合规，建议使用 UUID。详情：{detail}",
    "nothing_new": "请求里没有新消息：会话中已有全部这些消息，请加上新的一条。详情：{detail}",
    "request_too_large": "请求体太大，请减少或缩短消息。详情：{detail}",
    "invalid_api_key": "密钥无效或未提供。请在请求头中写 'Authorization: Bearer 密钥'；密钥由服务器的管理员发放。",
    "insufficient_scope": "这个密钥没有所需的权限，请向服务器的管理员申请。详情：{detail}",
    "not_found": "这里没有您要的内容，请核对地址。详情：{detail}",
    "model_not_found": "没有这个模型，或它目前不可用；GET /v1/models 列出可用的模型。详情：{detail}",
    "session_not_found": "没有这个会话或这一轮对话：从未创建、已过期、已删除，或属于另一个密钥。",
    "response_not_found": "没有这个回复：未被保存、已过期、已删除，或属于另一个密钥。详情：{detail}",
    "method_not_allowed": "此地址不支持这个请求方法，响应头 Allow 列出可用的方法。详情：{detail}",
    "conflict": "请求与服务器上的现状冲突。详情：{detail}",
    "session_exists": "已有同名会话，请换一个名字，或先删除原来的会话。",
    "session_busy": "该会话的另一轮对话还在进行，请稍后重试（见响应头 Retry-After）。",
    "history_conflict": "发来的历史与服务器保存的不一致。详情：{detail}",
    "idempotency_conflict": "这个 Idempotency-Key 已用于另一个请求，请换一个新的。",
    "turn_lost": "这一轮已作答但没有保存：另一个服务副本接管了该会话。请读取会话后重新提问。",
    "unsupported_media_type": "请求体必须是 JSON，请加上请求头 'Content-Type: application/json'。详情：{detail}",
    "rate_limit_exceeded": "这个密钥的请求太频繁，请稍后重试（见响应头 Retry-After）。详情：{detail}",
    "concurrency_limit_exceeded": "这个密钥同时进行的请求太多，请等其中一个结束后重试。详情：{detail}",
    "headers_too_large": "请求头太大，请减少请求头后重发。详情：{detail}",
    "request_timed_out": "请求用时超过服务器的限制，已停止。请缩短问题，或减小 max_tokens。详情：{detail}",
    "internal_error": "服务器内部错误，原因记录在日志中，请求编号 {request_id}。请把编号告诉服务器的管理员。",
    "memory_unreadable": "无法读取这个会话：保存它时所用的密钥不在服务器上，或内容被改动过。服务器的管理员可在日志中找到原因。",
    "unavailable": "服务暂时不可用，请稍后重试。详情：{detail}",
    "server_overloaded": "服务器正忙，请稍后重试（见响应头 Retry-After）。详情：{detail}",
    "shutting_down": "服务器正在关闭，请稍后重试，或改用另一个副本。",
    "audit_unavailable": "审计记录暂时无法写入，服务器因此不接受新的请求，请稍后重试，或改用另一个副本。",
    "engine_unavailable": "模型暂时不可用（正在启动，或故障后正在重启），请稍后重试；/readyz 显示何时就绪。详情：{detail}",
    "memory_unavailable": "会话数据库暂时不可用，请稍后重试；不带会话的请求不受影响。详情：{detail}",
}


def preferred(accept_language: str) -> Language:
    """The language of ours that the header likes best; the earlier one of equals, English where it likes neither.

    Any Chinese (`zh-CN`, `zh-Hans`, `zh-TW`) is the one that there is; a range that is not well formed is passed over.
    """
    named: dict[str, tuple[float, int]] = {}
    for place, part in enumerate(accept_language.split(",")):
        if found := _RANGE.fullmatch(part.strip(" \t")):
            primary = found[1].split("-")[0].lower()
            weight = (float(found[2] or 1), -place)
            named[primary] = max(weight, named.get(primary, weight))
    nothing = (0.0, 0)
    english, chinese = (named.get(primary, named.get("*", nothing)) for primary in ("en", "zh"))
    return "zh" if chinese[0] > 0 and chinese > english else "en"


def text_of(error: ApiError, request_id: str) -> str:
    """An error's message in the language of the request that is being answered."""
    if language.get() == "en":
        return error.message
    where = f"字段 {error.param} " if error.param else "请求"
    return ZH[error.code].format(where=where, detail=error.message, request_id=request_id)
