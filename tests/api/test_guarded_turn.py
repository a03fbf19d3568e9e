"""The guard on a real turn: a block aborts the engine, the record says what left, and a client that goes leaks nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from services.api.safety.policy import FOLDER
from services.contract.chat_format import END_THINK, IM_END, THINK
from tests.fakes import FakeEngine, Pen
from tests.running import Factory, frames_of, until

FALLBACK = "根据您的描述,存在需要紧急医学评估的风险,请立即前往医院急诊科就诊。"
CLAIM = "先看检查结果。这个药绝对能把您的病彻底治好，保证永不复发。请放心买。"
ASK: dict[str, Any] = {"model": "Qwen3-1.7B", "messages": [{"role": "user", "content": "这个药能治好湿疹吗？"}]}
CHEST: dict[str, Any] = {
    "model": "Qwen3-1.7B",
    "messages": [{"role": "user", "content": "我爸突然胸口像压了块大石头，疼得直冒冷汗，左胳膊也麻，半小时了不缓解。"}],
}


def content_of(frames: list[Any]) -> str:
    return "".join(c["delta"].get("content") or "" for f in frames for c in f["choices"])


def reasoning_of(frames: list[Any]) -> str:
    return "".join(c["delta"].get("reasoning") or "" for f in frames for c in f["choices"])


async def both(running: Any, body: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The same request whole and streamed."""
    whole = await running.chat(**body)
    assert whole.status_code == 200, whole.text
    streamed = await running.chat(**body, stream=True)
    return whole.json(), frames_of(streamed.text)


async def test_a_block_ends_as_a_valid_reply_in_both_modes(in_process: Factory, pen: Pen) -> None:
    engine = FakeEngine(pen.chat_format, pen.thought("想一想。", CLAIM + "再说几句。" * 200), sizes=(3, 1, 7))
    async with in_process(engine) as service:
        whole, frames = await both(service, ASK)
        message = whole["choices"][0]
        assert message["message"]["content"] == FALLBACK
        assert message["finish_reason"] == frames[-1]["choices"][0]["finish_reason"] == "content_filter"
        assert whole["safety"] == frames[-1]["safety"]
        assert whole["safety"]["verdict"] == "block"
        assert whole["safety"]["rules"] == ["absolute_claim"]
        assert content_of(frames) == f"先看检查结果。\n\n{FALLBACK}"
        replaced = [f["safety"] for f in frames if f.get("safety", {}).get("replace")]
        assert [r["replace"] for r in replaced] == [FALLBACK]
        assert "彻底治好" not in json.dumps([whole, frames], ensure_ascii=False)
        assert len(engine.aborted) == 2
        assert service.metric("medthink_safety_replies_total", verdict="block", mode="stream") == 1
        assert service.metric("medthink_safety_replies_total", verdict="block", mode="whole") == 1


async def test_an_emergency_is_amended_in_both_modes(in_process: Factory, pen: Pen) -> None:
    engine = FakeEngine(pen.chat_format, pen.thought("想一想。", "可能是肌肉拉伤。注意休息，多喝水。"))
    async with in_process(engine) as service:
        whole, frames = await both(service, CHEST)
        assert whole["choices"][0]["message"]["content"].startswith(FALLBACK)
        assert content_of(frames).startswith(FALLBACK)
        assert "可能是肌肉拉伤。" in content_of(frames)
        assert whole["safety"] == frames[-1]["safety"]
        assert whole["safety"]["verdict"] == "amend"
        assert frames[-1]["choices"][0]["finish_reason"] == "stop"


async def test_an_ordinary_reply_is_left_alone(in_process: Factory, pen: Pen) -> None:
    answer = "多喝水，注意休息。三天后仍不好转，请到门诊就诊。"
    async with in_process(FakeEngine(pen.chat_format, pen.thought("想一想。再想。", answer))) as service:
        whole, frames = await both(service, ASK)
        assert whole["choices"][0]["message"]["content"] == content_of(frames) == answer
        assert reasoning_of(frames) == whole["choices"][0]["message"]["reasoning"] == "想一想。再想。"
        assert whole["safety"]["verdict"] == "pass"


async def test_the_record_says_what_left_and_holds_no_text(in_process: Factory, pen: Pen, tmp_path: Path) -> None:
    record = tmp_path / "records" / "safety.jsonl"
    engine = FakeEngine(pen.chat_format, pen.thought("想一想。", CLAIM))
    async with in_process(engine, safety_records=str(record)) as service:
        await both(service, ASK)
    text = record.read_text()
    whole, streamed = map(json.loads, text.splitlines())
    assert (whole["mode"], streamed["mode"]) == ("whole", "stream")
    assert whole["verdict"] == streamed["verdict"] == "block"
    assert whole["hits"] == streamed["hits"]
    assert whole["sent"] == {"reasoning": 0, "answer": len(FALLBACK), "fallback": True, "addition": "none"}
    assert streamed["sent"]["reasoning"] == 4
    assert whole["complete"]
    hit = whole["hits"][0]
    assert CLAIM[hit["start"] : hit["end"]]
    assert not any(word in text for word in ("治好", "湿疹", "检查", "想一想"))


async def test_a_client_that_leaves_gets_no_more_and_the_record_says_so(
    served: Factory, pen: Pen, tmp_path: Path
) -> None:
    record = tmp_path / "safety.jsonl"
    endless = FakeEngine(
        pen.chat_format, pen.text("第一句。" * 8), delay_s=0.002
    )  # no end of turn: it goes on until it is told
    body = {**ASK, "stream": True, "enable_thinking": False, "max_tokens": 1500}
    async with served(endless, safety_records=str(record)) as service:
        async with service.client.stream("POST", "/v1/chat/completions", json=body) as response:
            await anext(response.aiter_raw())
        await until(lambda: record.exists() and bool(record.read_text()))
    assert endless.aborted
    assert json.loads(record.read_text())["complete"] is False


async def test_the_profiles(in_process: Factory, pen: Pen) -> None:
    reply = pen.thought("想一想。", "中性粒细胞绝对值偏低，建议复查。")
    for profile, verdict in (("default", "pass"), ("seed", "block"), ("off", "unchecked")):
        async with in_process(FakeEngine(pen.chat_format, reply), safety_profile=profile) as service:
            whole, frames = await both(service, ASK)
            assert whole["safety"]["verdict"] == frames[-1]["safety"]["verdict"] == verdict


async def test_a_check_that_breaks_blocks(in_process: Factory, pen: Pen, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.api.safety.rules.absolute_claim import AbsoluteClaim

    def broken(*_: object) -> None:
        raise RuntimeError("secret text of a patient")

    monkeypatch.setattr(AbsoluteClaim, "judge", broken)
    async with in_process(FakeEngine(pen.chat_format, pen.thought("想。", "多喝水。"))) as service:
        whole, frames = await both(service, ASK)
        assert whole["choices"][0]["message"]["content"] == FALLBACK
        assert content_of(frames) == FALLBACK
        assert whole["safety"]["rules"] == ["check_failed"]


async def test_a_request_keeps_the_policy_that_it_began_with(in_process: Factory, pen: Pen, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(FOLDER, folder)
    engine = FakeEngine(pen.chat_format, pen.answer("多喝水。" * 60), delay_s=0.002)
    body = {**ASK, "enable_thinking": False, "stream": True}
    async with in_process(engine, safety_policy=str(folder), safety_poll_s=0.02) as service:
        before = frames_of((await service.chat(**body)).text)[-1]["safety"]["policy"]
        policy = folder / "policy.yaml"
        text = policy.read_text()
        policy.write_text("version: [")
        await until(lambda: service.metric("medthink_safety_policy_reloads_total", result="refused") == 1)
        assert frames_of((await service.chat(**body)).text)[-1]["safety"]["policy"] == before
        policy.write_text(text.replace('version: "', 'version: "next-'))
        await until(lambda: service.metric("medthink_safety_policy_reloads_total", result="loaded") == 1)
        assert frames_of((await service.chat(**body)).text)[-1]["safety"]["policy"].startswith("next-")


async def test_second_opinion_raises_and_never_lowers(in_process: Factory, pen: Pen) -> None:
    def reply(request: Any) -> list[int]:
        if request.request_id.endswith("-opinion"):
            return pen.write(words[0], IM_END)
        return pen.write(THINK, "\n想。\n", END_THINK, "\n\n", answers[0], IM_END)

    words, answers = ["block"], ["多喝水。"]
    async with in_process(FakeEngine(pen.chat_format, reply), safety_second_opinion=True) as service:
        whole, frames = await both(service, ASK)
        assert whole["safety"] == frames[-1]["safety"]
        assert (whole["safety"]["verdict"], whole["safety"]["rules"]) == ("block", ["second_opinion"])
        assert whole["choices"][0]["message"]["content"] == FALLBACK
        words[0] = "amend"
        whole, frames = await both(service, ASK)
        assert whole["safety"] == frames[-1]["safety"]
        assert whole["choices"][0]["message"]["content"].startswith(FALLBACK)
        words[0] = "pass"
        whole, _ = await both(service, ASK)
        assert whole["safety"]["verdict"] == "pass"
        answers[0] = CLAIM
        whole, _ = await both(service, ASK)
        assert whole["safety"]["rules"] == ["absolute_claim"]
        words[0], answers[0] = "nonsense", "多喝水。"
        whole, _ = await both(service, ASK)
        assert (whole["safety"]["verdict"], whole["safety"]["rules"]) == ("block", ["check_failed"])
