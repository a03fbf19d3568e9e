"""The environment, read once; every bad value is told."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.api.settings import DEFAULT_SYSTEM_PROMPT, Settings, SettingsError, read_settings


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [n for n in os.environ if n.upper().startswith("MEDTHINK_")]:
        monkeypatch.delenv(name)


def test_defaults_serve_on_loopback_without_a_key() -> None:
    settings = read_settings()
    assert (settings.host, settings.port, settings.keys) == ("127.0.0.1", 8000, ())
    assert settings.system_prompt == DEFAULT_SYSTEM_PROMPT
    assert "循证医学" in DEFAULT_SYSTEM_PROMPT


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTHINK_PORT", "9001")
    monkeypatch.setenv("medthink_host", "0.0.0.0")
    monkeypatch.setenv("MEDTHINK_API_KEYS", " one, two ,,")
    settings = read_settings()
    assert (settings.port, settings.host, settings.keys) == (9001, "0.0.0.0", ("one", "two"))


BAD = {
    "PORT": "70000",
    "MAX_MODEL_LEN": "10",
    "GPU_MEMORY_UTILIZATION": "1.5",
    "ENGINE_ARGS": "[1]",
    "LOG_FORMAT": "xml",
    "DRAIN_S": "-1",
    "MODEL_SOURCE": "elsewhere",
    "MAX_ACTIVE_REQUESTS": "many",
}


def test_all_bad_values_are_listed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BAD.items():
        monkeypatch.setenv(f"MEDTHINK_{name}", value)
    with pytest.raises(SettingsError) as error:
        read_settings()
    lines = str(error.value).splitlines()
    assert {line.split(":")[0] for line in lines} == {f"MEDTHINK_{name}" for name in BAD}
    for line in lines:
        name = line.split(":")[0].removeprefix("MEDTHINK_")
        assert BAD[name] in line, "a line shows what it refuses"


@pytest.mark.parametrize("value", ["", "{", "[]", "null", "1"])
def test_engine_arguments_must_be_a_json_object(monkeypatch: pytest.MonkeyPatch, value) -> None:
    monkeypatch.setenv("MEDTHINK_ENGINE_ARGS", value)
    with pytest.raises(SettingsError, match="MEDTHINK_ENGINE_ARGS"):
        read_settings()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        read_settings().port = 1  # type: ignore[misc]
