"""The failure matrix against the real engine. Each row ends with the question whether anybody else was hurt by it.

Two streams run all the while, one of the base model and one of an adapter; not one of them may fail or say another word.
vLLM itself takes some of these adapters without a word, or dies of them, or answers the base model's requests with them.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from services.contract.adapter_manifest import CONFIG, CURRENT, MANIFEST, WEIGHTS
from tests.adapters.volumes import Volume, overwrite, write_manifest_again
from tests.fakes import DEMO, demo_chat_format
from tests.server import Server, data_frames, until
from tests.trainer.adapters import adapter_config

pytestmark = pytest.mark.vllm

PLACES = 5
QUESTION = "左心室EF值35%是什么意思？"
TOKENS = 32
LONG = 160


@dataclass(frozen=True)
class Reply:
    """A greedy reply: its text and its tokens' logprobs."""

    text: str
    logprobs: tuple[float, ...]
    adapter: dict[str, str] | None

    def __eq__(self, other: object) -> bool:
        """The same words, and numbers that differ by no more than rounding in another batch does."""
        assert isinstance(other, Reply)
        if self.text != other.text or len(self.logprobs) != len(other.logprobs):
            return False
        return bool(np.allclose(self.logprobs, other.logprobs, atol=1e-3, rtol=0))


@dataclass
class Live:
    """The server, its volume, and what its base model said before it had met an adapter."""

    server: Server
    volume: Volume
    http: httpx.Client
    before: Reply | None = None
    engine_pid: int = 0
    failures: list[str] = field(default_factory=list)

    def body(self, model: str | None, tokens: int, **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": QUESTION}]
        plain = {"messages": messages, "temperature": 0, "max_tokens": tokens, "ignore_eos": True, "logprobs": True}
        return plain | {"model": model, "enable_thinking": False, "stream": True} | fields

    def ask(
        self,
        model: str | None,
        tokens: int = TOKENS,
        on_first: Callable[[], None] = lambda: None,
        **fields: Any,
    ) -> Reply:
        """A greedy stream's reply; any error in it fails the test."""
        text, logprobs, adapter, ends = "", [], None, []
        with self.http.stream("POST", "/v1/chat/completions", json=self.body(model, tokens, **fields)) as response:
            assert response.status_code == 200, response.read().decode()
            for frame in data_frames(response.iter_lines()):
                if isinstance(frame, str):
                    continue
                assert "error" not in frame, frame
                for choice in frame["choices"]:
                    text += choice["delta"].get("content") or ""
                    found = (choice["logprobs"] or {}).get("content") or []
                    logprobs += [token["logprob"] for token in found]
                    ends += [choice["finish_reason"]] if choice["finish_reason"] else []
                    if found:
                        on_first()
                adapter = frame.get("adapter") or adapter
        assert ends == ["length"]
        return Reply(text, tuple(logprobs), adapter)

    def refused(self, model: str) -> tuple[int, str]:
        """Status and message of a request that must fail."""
        response = self.http.post("/v1/chat/completions", json=self.body(model, 1) | {"stream": False})
        assert response.status_code != 200
        return response.status_code, response.json()["error"]["message"]

    def described(self, name: str, version: str) -> dict[str, Any]:
        for adapter in self.http.get("/v1/adapters").json()["data"]:
            for one in adapter["versions"]:
                if (adapter["name"], one["version"]) == (name, version):
                    return dict(one)
        return {"state": None, "reason": None}

    def wait_for(self, name: str, version: str, state: str = "ready") -> dict[str, Any]:
        until(lambda: self.described(name, version)["state"] == state, 20)
        return self.described(name, version)

    def current(self) -> dict[str, str]:
        return {a["name"]: a["current"] for a in self.http.get("/v1/adapters").json()["data"]}

    def served(self) -> set[str]:
        return {name for name, version in self.current().items() if version}

    def publish(self, name: str, seed: int) -> str:
        version = self.volume.publish(name, seed)
        until(lambda: self.current().get(name) == version, 20)
        return version

    def check(self) -> None:
        """The engine lives, the base model's numbers are what they were, and nobody else was hurt."""
        assert self.server.engine_core().pid == self.engine_pid, "the engine has died"
        assert self.ask(None) == self.before
        assert self.failures == []


class Traffic:
    """Two clients that ask on and on, whatever else happens."""

    def __init__(self, live: Live, models: tuple[str | None, ...]) -> None:
        self._live = live
        self._expected = {model: live.ask(model, LONG) for model in models}
        self._ends = threading.Event()
        self.asked = 0
        self._threads = [threading.Thread(target=self._go_on, args=(model,)) for model in models]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Returns when both clients have their last answer."""
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _go_on(self, model: str | None) -> None:
        while not self._ends.is_set():
            try:
                reply = self._live.ask(model, LONG)
                if reply != self._expected[model]:
                    self._live.failures.append(f"{model} said something else: {reply.text[:60]!r}")
            except Exception as error:  # noqa: BLE001 - shown by the test that looks next
                self._live.failures.append(f"{model}: {error!r}")
            self.asked += 1


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("adapters")
    base = json.loads((DEMO / "config.json").read_text())
    volume = Volume(folder / "volume", folder / "work", base, demo_chat_format().digest)
    places = {"ADAPTERS": str(volume.root), "ADAPTER_CACHE": str(folder / "copies"), "ADAPTER_POLL_S": "0.05"}
    limits = {"MAX_ADAPTER_RANK": "16", "MAX_ADAPTERS_LOADED": str(PLACES), "MAX_ADAPTERS_IN_BATCH": "2"}
    server = Server(**places, **limits, RESTART_BACKOFF_S="0.05", MAX_MODEL_LEN="2048")
    try:
        server.wait_until_ready()
        with httpx.Client(base_url=server.url, timeout=120) as http:
            live = Live(server, volume, http)
            live.before, live.engine_pid = live.ask(None), server.engine_core().pid
            yield live
    finally:
        server.stop()


@pytest.fixture(scope="module")
def traffic(started: Live) -> Iterator[Traffic]:
    started.publish("steady", 1)
    clients = Traffic(started, (None, "steady"))
    clients.start()
    yield clients
    clients.end()


@pytest.fixture
def live(started: Live, traffic: Traffic) -> Iterator[Live]:
    """Every test ends with the question whether anybody was hurt; whatever it published is withdrawn."""
    yield started
    started.check()
    for path in started.volume.root.iterdir():
        if path.name not in ("steady", ".staging"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    until(lambda: not started.served() - {"steady"}, 20)


# Adapters that must not be served


def cut(name: str, keep: float = 0.5, honest: bool = False) -> Callable[[Path], None]:
    """Half a file; an honest manifest says that it is half."""

    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        overwrite(folder / name, data[: int(len(data) * keep)])
        if honest:
            write_manifest_again(folder)

    return change


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def half_written(folder: Path) -> None:
    remove(MANIFEST)(folder)
    cut(WEIGHTS)(folder)


def linked(folder: Path) -> None:
    outside = folder.parent.parent.parent / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    os.rename(folder, outside)
    folder.symlink_to(outside)


def linked_weights(folder: Path) -> None:
    outside = folder.parent.parent.parent / "weights"
    os.replace(folder / WEIGHTS, outside)
    (folder / WEIGHTS).symlink_to(outside)


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a folder that is being written": (half_written, MANIFEST),
    "no config": (remove(CONFIG), CONFIG),
    "no weights": (remove(WEIGHTS), WEIGHTS),
    "half a config": (cut(CONFIG), "not copied whole"),
    "half a config, as published": (cut(CONFIG, honest=True), "no JSON"),
    "truncated weights": (cut(WEIGHTS), "not copied whole"),
    "truncated weights, as published": (cut(WEIGHTS, honest=True), "truncated"),
    "weights cut in their header, as published": (cut(WEIGHTS, 0.001, honest=True), "safetensors"),
    "empty weights, as published": (cut(WEIGHTS, 0.0, honest=True), "safetensors"),
    "a linked folder": (linked, "symbolic link"),
    "linked weights": (linked_weights, WEIGHTS),
}


def wait_until_refused(live: Live, name: str, version: str, reason: str) -> None:
    entry = live.wait_for(name, version, "refused")
    assert reason in entry["reason"]
    assert live.current()[name] is None
    status, message = live.refused(name)
    assert status == 404
    assert "does not exist" in message


@pytest.mark.parametrize("row", FILES)
def test_a_version_that_is_not_whole_is_refused_with_its_reason(live: Live, row: str) -> None:
    change, reason = FILES[row]
    name = row.replace(" ", "-").replace(",", "")
    wait_until_refused(live, name, live.volume.place_raw(name, change), reason)


def changed(volume: Volume, key: str, value: float) -> dict[str, np.ndarray]:
    tensors = volume.tensors(7)
    name = next(k for k in tensors if key in k)
    tensors[name][2, 3] = value
    return tensors


def renamed(volume: Volume) -> dict[str, np.ndarray]:
    return {k.replace("model.model.layers", "transformer.h"): v for k, v in volume.tensors(7).items()}


def moved(volume: Volume) -> dict[str, np.ndarray]:
    return {k.replace("self_attn", "attention"): v for k, v in volume.tensors(7).items()}


def with_more(volume: Volume) -> dict[str, np.ndarray]:
    extra = {"base_model.model.lm_head.weight": np.ones((8, 8), np.float32)}
    return volume.tensors(7) | extra


def with_bias(volume: Volume) -> dict[str, np.ndarray]:
    tensors = volume.tensors(7)
    return tensors | {k.replace("weight", "bias"): np.ones(v.shape[0], np.float32) for k, v in tensors.items()}


def untrained(volume: Volume) -> dict[str, np.ndarray]:
    return {k: v * (".lora_A." in k) for k, v in volume.tensors(7).items()}


def of(**options: Any) -> Callable[[Volume], dict[str, np.ndarray]]:
    return lambda volume: volume.tensors(7, **options)


Make = Callable[[Volume], dict[str, np.ndarray]]
CONTENTS: dict[str, tuple[Make, dict[str, Any], dict[str, str], str]] = {
    "rank too large": (of(rank=32), {"r": 32}, {}, "rank 32"),
    "rank that lies": (of(rank=8), {"r": 16}, {}, "shape"),
    "DoRA": (of(), {"use_dora": True}, {}, "use_dora"),
    "aLoRA": (of(), {"alora_invocation_tokens": [1, 2]}, {}, "alora"),
    "unknown target": (of(), {"target_modules": ["q_proj", "wq"]}, {}, "'wq'"),
    "modules to save": (with_more, {"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
    "lm_head in the weights": (with_more, {}, {}, "lm_head"),
    "PiSSA": (of(), {"init_lora_weights": "pissa"}, {}, "pissa"),
    "OLoRA": (of(), {"init_lora_weights": "olora"}, {}, "olora"),
    "lora_bias": (with_bias, {"lora_bias": True}, {}, "lora_bias"),
    "bias in the weights": (with_bias, {}, {}, "bias"),
    "rank pattern": (of(), {"rank_pattern": {"q_proj": 4}}, {}, "rank_pattern"),
    "another method": (of(), {"peft_type": "IA3"}, {}, "IA3"),
    "wrong hidden size": (of(hidden_size=256), {}, {}, "shape"),
    "wrong number of heads": (of(num_attention_heads=12), {}, {}, "shape"),
    "another base model": (of(), {}, {"config_sha256": "0" * 64}, "another base model"),
    "another tokenizer": (of(), {}, {"chat_format_sha256": "0" * 64}, "tokenizer"),
    "a deeper model": (of(num_hidden_layers=8), {}, {}, "no module of this base model"),
    "a shallower model": (of(num_hidden_layers=2), {}, {}, "missing"),
    "renamed modules": (renamed, {}, {}, "transformer.h"),
    "moved modules": (moved, {}, {}, "attention"),
    "NaN": (lambda volume: changed(volume, "lora_A", float("nan")), {}, {}, "NaN"),
    "infinity": (lambda volume: changed(volume, "lora_B", float("inf")), {}, {}, "infinite"),
    "a weight that overflows": (lambda volume: changed(volume, "lora_B", 1e30), {}, {}, "too large"),
    "a scale that overflows": (of(), {"lora_alpha": 1e38}, {}, "lora_alpha"),
    "zero B": (untrained, {}, {}, "changes nothing"),
}


@pytest.mark.parametrize("row", CONTENTS)
def test_a_version_that_does_not_fit_is_refused_with_its_reason(live: Live, row: str) -> None:
    make, options, base, reason = CONTENTS[row]
    name = row.replace(" ", "-")
    config = adapter_config(**options)
    wait_until_refused(live, name, live.volume.place(name, make(live.volume), config, **base), reason)


def test_the_largest_weights_that_are_let_in_hurt_nobody(live: Live) -> None:
    """All at their bound and of one sign, the worst case: the numbers stay finite, in the cache of others too."""
    tensors = {k: np.full_like(v, 100.0) for k, v in live.volume.tensors(7).items()}
    version = live.volume.place("huge", tensors, adapter_config(lora_alpha=800))
    until(lambda: live.described("huge", version)["state"] in ("ready", "refused"), 20)
    for _ in range(3):
        live.check()
    if live.described("huge", version)["state"] == "ready":
        live.ask("huge")
        live.check()


@pytest.mark.parametrize("text", ["../steady/{v}", "/etc/passwd", "{v}/../{v}", "", "{v}\n../x", "CURRENT"])
def test_a_current_that_points_elsewhere_names_no_version(live: Live, text: str) -> None:
    version = live.current()["steady"]
    (live.volume.root / "escape").mkdir()
    overwrite(live.volume.root / "escape" / CURRENT, text.format(v=version))
    time.sleep(0.2)
    assert "escape" not in live.served()
    assert live.refused("escape")[0] == 404


@pytest.mark.parametrize(
    "model",
    ["../../etc", "/etc/passwd", "steady/../steady", "steady@../../x", "steady@" + "f" * 16, "%2e%2e/steady", "\x00"],
)
def test_a_model_name_is_never_a_path(live: Live, model: str) -> None:
    assert live.refused(model)[0] == 404
    assert live.served() == {"steady"}


# Versions that move


def test_a_stream_keeps_its_version_to_the_end_and_the_next_request_gets_the_new_one(live: Live) -> None:
    old = live.publish("moving", 11)
    undisturbed = live.ask("moving", LONG)
    begun = threading.Event()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(live.ask, "moving", LONG, begun.set)
        assert begun.wait(20)
        new = live.publish("moving", 12)
        assert not running.done(), "the stream was too short to prove anything"
        other = live.ask("moving")
        assert running.result() == undisturbed
    assert running.result().adapter == {"name": "moving", "version": old}
    assert other.adapter == {"name": "moving", "version": new}
    assert other.text != undisturbed.text[: len(other.text)]
    live.wait_for("moving", old, "unloaded")
    # Nothing of the old version is left in the prefix cache: under a name of its own the new one says the same.
    live.volume.publish("twin", 12)
    live.wait_for("twin", new)
    assert live.ask("twin") == live.ask("moving") == other


def test_a_rollback_gives_the_old_version_with_its_old_numbers(live: Live) -> None:
    old = live.publish("moving", 11)
    before = live.ask("moving")
    new = live.publish("moving", 12)
    after = live.ask("moving")
    live.volume.rollback("moving")
    until(lambda: live.current()["moving"] == old)
    assert live.ask("moving") == before != after
    assert live.ask(f"moving@{new}") == after, "the one that was rolled back can still be asked by its version"


def test_a_bad_new_version_leaves_the_old_one_serving(live: Live) -> None:
    old = live.publish("moving", 11)
    before = live.ask("moving")
    bad = live.volume.place("moving", changed(live.volume, "lora_B", float("nan")))
    live.wait_for("moving", bad, "refused")
    assert live.ask("moving") == before
    assert live.current()["moving"] == old
    status, message = live.refused(f"moving@{bad}")
    assert (status, "NaN" in message) == (404, True)


def test_eight_streams_do_not_notice_versions_that_alternate_five_times(live: Live) -> None:
    seeds = {live.publish("moving", 12): 12, live.publish("moving", 11): 11}
    expected = {version: live.ask(f"moving@{version}", 48) for version in seeds}
    ends, replies = threading.Event(), []

    def go_on() -> None:
        while not ends.is_set():
            replies.append(live.ask("moving", 48))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(go_on) for _ in range(8)]
        for turn in range(5):
            version = live.publish("moving", (12, 11)[turn % 2])
            enough = len(replies) + 4
            until(lambda enough=enough: len(replies) >= enough, 60)
        ends.set()
        for client in clients:
            client.result()
    assert version in seeds
    assert {r.adapter["version"] for r in replies} == set(seeds)
    assert all(reply == expected[reply.adapter["version"]] for reply in replies)


# Files that go away


def test_what_is_loaded_survives_the_loss_of_its_files_and_of_its_place(live: Live) -> None:
    """vLLM reads an evicted adapter's files again in the middle of a step, and dies when they are gone."""
    version = live.publish("moving", 11)
    before = live.ask("moving")
    shutil.rmtree(live.volume.root / "moving" / version)
    for n in range(PLACES + 2):
        live.publish(f"crowd{n}", 20 + n)
        live.ask(f"crowd{n}", 2)
    assert live.ask("moving") == before


def test_a_pinned_version_whose_files_are_gone_is_not_found(live: Live) -> None:
    old = live.publish("moving", 11)
    live.publish("moving", 12)
    live.wait_for("moving", old, "unloaded")
    shutil.rmtree(live.volume.root / "moving" / old)
    assert live.refused(f"moving@{old}")[0] == 404


def test_a_volume_that_vanishes_and_comes_back_is_noticed_by_nobody(live: Live) -> None:
    version = live.publish("moving", 11)
    before = live.ask("moving")
    live.volume.vanish()
    until(lambda: live.server.metric("medthink_adapter_volume_up") == 0)
    assert live.ask("moving") == before
    assert live.server.status("/readyz") == 200
    live.volume.come_back()
    until(lambda: live.server.metric("medthink_adapter_volume_up") == 1)
    assert live.current()["moving"] == version
    new = live.publish("moving", 12)
    assert live.ask("moving").adapter == {"name": "moving", "version": new}


# Many


def test_all_places_in_use_at_once_change_no_answer(live: Live) -> None:
    """With every slot taken vLLM's CPU kernels would compute the base model's rows with the last slot's adapter."""
    names = [f"crowd{n}" for n in range(PLACES - 1)]
    for n, name in enumerate(names):
        live.publish(name, 20 + n)
    alone = {name: live.ask(name) for name in names}
    assert len({reply.text for reply in alone.values()} | {live.before.text}) == PLACES
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for _ in range(3):
            asked = {name: pool.submit(live.ask, name) for name in names}
            base = [pool.submit(live.ask, None) for _ in range(3)]
            assert all(reply.result() == live.before for reply in base)
            assert all(asked[name].result() == alone[name] for name in names)


def test_three_hundred_names_are_known_within_seconds_and_any_of_them_answers(live: Live) -> None:
    source = live.volume.folder("steady", live.current()["steady"])
    for n in range(300):
        copy_under_another_name(source, live.volume.root / f"name{n:03}")
    until(lambda: len(live.served()) == 301, 20)
    ids = [card["id"] for card in live.http.get("/v1/models").json()["data"]]
    assert set(ids) >= {f"name{n:03}" for n in range(300)}
    expected = live.ask("steady")
    for name in ("name299", "name000", "name150", "name299"):
        reply = live.ask(name)
        assert reply == expected
        assert reply.adapter == {"name": name, "version": source.name}
    ready = [v for a in live.http.get("/v1/adapters").json()["data"] for v in a["versions"] if v["state"] == "ready"]
    assert len(ready) <= PLACES


def copy_under_another_name(source: Path, folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}")
    shutil.copytree(source, temporary / source.name)
    manifest = json.loads((source / MANIFEST).read_text()) | {"name": folder.name}
    overwrite(temporary / source.name / MANIFEST, json.dumps(manifest))
    overwrite(temporary / CURRENT, f"{source.name}\n")
    os.rename(temporary, folder)


def test_the_time_from_published_to_served_is_short(live: Live) -> None:
    waits = []
    for seed in range(11, 16):
        begun = time.monotonic()
        live.publish("moving", seed)
        waits.append(time.monotonic() - begun)
    assert sorted(waits)[2] < 2.0


# The engine's death; last, since nobody asks on through it


def test_adapters_are_served_again_after_the_engine_was_killed(started: Live, traffic: Traffic) -> None:
    traffic.end()
    assert traffic.asked > 10
    version = started.publish("survivor", 11)
    before = started.ask("survivor")
    started.volume.vanish()
    started.server.engine_core().kill()
    until(lambda: started.server.status("/readyz") == 503, 20)
    started.server.wait_until_ready()
    assert started.ask("survivor") == before
    assert started.ask(None) == started.before
    started.volume.come_back()
    assert started.publish("survivor", 12) != version
    assert started.ask("survivor") != before
