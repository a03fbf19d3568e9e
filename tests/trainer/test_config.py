"""Every setting of a run: presets, what wins over what, and errors that name the setting."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.trainer.config import ALL_LINEAR, ConfigError, TrainConfig, make_config, read_config
from tests import qwen3

CONFIGS = sorted((qwen3.ROOT / "deploy" / "configs").glob("*.yaml"))


def test_the_seed_preset_is_the_articles() -> None:
    config = read_config(settings=["preset=seed"])
    assert (config.rank, config.alpha, config.dropout) == (8, 16, 0.05)
    assert config.targets == ("q_proj", "v_proj")


def test_the_default_preset_adapts_every_linear_module() -> None:
    config = read_config()
    assert (config.rank, config.alpha, config.dropout, config.targets) == (16, 32, 0.0, ALL_LINEAR)


def test_set_wins_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("preset: seed\nrank: 4\nseed: 1\n", encoding="utf-8")
    config = read_config(path, ["seed=2"])
    assert (config.rank, config.alpha, config.seed) == (4, 16, 2)


def test_a_full_fine_tune_has_its_own_learning_rate_and_no_adapter_settings() -> None:
    config = read_config(settings=["method=full"])
    assert (config.learning_rate, config.epochs) == (2e-5, 1)
    assert "rank" not in config.as_dict()
    with pytest.raises(ConfigError, match="rank: only for method lora"):
        read_config(settings=["method=full", "rank=8"])


@pytest.mark.parametrize(
    "settings", [["preset=seed"], ["method=full"], ["report_to=swanlab,tensorboard", "max_steps=3"]]
)
def test_a_written_config_reads_back_equal(settings: list[str], tmp_path: Path) -> None:
    config = read_config(settings=settings)
    path = tmp_path / "run.yaml"
    path.write_text(config.as_yaml(), encoding="utf-8")
    again = read_config(path)
    assert again == config
    assert again.sha256() == config.sha256()


def test_the_hash_is_of_what_is_learned_and_not_of_where_it_is_written() -> None:
    config = read_config()
    assert config.sha256() == read_config(settings=["out=elsewhere"]).sha256()
    assert config.sha256() != read_config(settings=["seed=1"]).sha256()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_shipped_configs_are_read(path: Path) -> None:
    assert read_config(path).method == ("full" if path.stem == "full" else "lora")


def test_there_is_a_shipped_config_for_each_use() -> None:
    assert [path.stem for path in CONFIGS] == ["full", "lora", "smoke", "train-demo"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("preset=sed", "there is no preset 'sed': there are default, seed"),
        ("learning_rat=1", "no setting 'learning_rat', did you mean 'learning_rate'"),
        ("precision=fp16", "fp16 is refused: Qwen3 was trained in bf16"),
        ("rank=none", "rank: Input should be a valid integer"),
        ("targets=lm_head", "'lm_head' is none of q_proj"),
        ("targets=none", "targets: "),
        ("report_to=wandb", "'wandb' is none of tensorboard, swanlab"),
        ("batch_tokens=100", "batch_tokens 100 cannot hold a row of max_length 2048"),
        ("epochs", "--set needs name=value"),
        ("epochs=-1", "epochs: Input should be greater than 0"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(settings=[setting])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"rank.*; epochs.*; there is no setting 'x'"):
        read_config(settings=["rank=0", "epochs=0", "x=1"])


def test_bf16_weights_do_not_go_with_fp32_products() -> None:
    with pytest.raises(ConfigError, match="trained_weights bf16 does not go with precision fp32"):
        read_config(settings=["precision=fp32", "trained_weights=bf16"])
    assert read_config(settings=["precision=fp32"]).weights_dtype == "fp32"


def test_padded_batches_may_be_smaller_than_a_pack() -> None:
    config = make_config({"packing": False, "batch_tokens": 100, "batch_size": 2})
    assert config.micro_batch_tokens == 2 * 2048


@pytest.mark.parametrize(
    ("content", "said"),
    [("a: [", "is not YAML"), ("- a\n", "must hold `name: value` lines"), (b"\xff\xfe", "cannot read the config")],
)
def test_a_broken_file_is_named(content: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=said):
        read_config(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "none.yaml")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("# nothing\n", encoding="utf-8")
    assert read_config(path) == TrainConfig()


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().rank = 3  # type: ignore[misc]
