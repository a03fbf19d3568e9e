"""The model that is trained: which weights, how many, in which types, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from services.contract.adapter_files import read_tensors  # noqa: E402
from services.contract.adapter_fit import check_options, check_tensors, module_sizes  # noqa: E402
from services.trainer import attention  # noqa: E402
from services.trainer.base_model import ModelError, base_id, check_base  # noqa: E402
from services.trainer.config import TrainConfig, make_config  # noqa: E402
from services.trainer.errors import TrainError  # noqa: E402
from services.trainer.model import TrainingQwen3, attach, autocasts, count_parameters, load_base  # noqa: E402
from services.trainer.saved_weights import trained_weights  # noqa: E402
from tests.trainer.tiny import make_base  # noqa: E402

pytestmark = pytest.mark.torch

# config.json of Qwen/Qwen3-1.7B, what decides shapes.
QWEN3_1_7B = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tiny"))


def without_memory(config: TrainConfig) -> Any:
    """The true shape, with an adapter, where tensors have no content."""
    from transformers import Qwen3Config

    with torch.device("meta"):
        return attach(TrainingQwen3(Qwen3Config(**QWEN3_1_7B)), config)


@pytest.mark.parametrize(
    ("preset", "trainable", "line"),
    [
        ("seed", 1_605_632, "trainable parameters: 1,605,632 of 1,722,180,608 (0.0932 %)"),
        ("default", 17_432_576, "trainable parameters: 17,432,576 of 1,738,007,552 (1.0030 %)"),
    ],
)
def test_a_presets_parameters_on_qwen3_1_7b(preset: str, trainable: int, line: str) -> None:
    config = make_config({"preset": preset})
    counts = count_parameters(without_memory(config))
    assert str(counts) == line
    sizes = module_sizes(QWEN3_1_7B)
    assert counts.trainable == trainable
    assert trainable == 28 * sum(config.rank * (sizes[t][1] + sizes[t][2]) for t in config.targets)


def test_a_full_fine_tune_trains_every_weight() -> None:
    counts = count_parameters(without_memory(make_config({"method": "full"})))
    assert (counts.trainable, counts.total) == (1_720_574_976, 1_720_574_976)


@pytest.mark.parametrize("preset", ["seed", "default"])
def test_an_adapter_of_each_preset_can_be_served(preset: str, base: Path, tmp_path: Path) -> None:
    config = make_config({"base": base, "preset": preset, "precision": "fp32"})
    weights = trained_weights(attach(load_base(config, "cpu"), config))
    weights.write(tmp_path, torch.bfloat16)
    options = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = read_tensors(tmp_path / "adapter_model.safetensors")
    check_options(options, 16)
    check_tensors(options, tensors, check_base(base))
    assert {tensor.dtype for tensor in tensors.values()} == {"BF16"}
    assert options["target_modules"] == sorted(config.targets)


def test_only_the_adapter_learns_and_it_begins_as_no_change(base: Path) -> None:
    config = make_config({"base": base, "precision": "bf16"})
    model = attach(load_base(config, "cpu"), config)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
        if "lora_B" in name:
            assert parameter.abs().max() == 0


def test_equal_seeds_give_equal_adapters(base: Path) -> None:
    def first_a(seed: int) -> Any:
        config = make_config({"base": base, "seed": seed, "precision": "fp32"})
        model = attach(load_base(config, "cpu"), config)
        return next(p for name, p in model.named_parameters() if "lora_A" in name)

    torch.testing.assert_close(first_a(1), first_a(1), rtol=0, atol=0)
    assert not torch.equal(first_a(1), first_a(2))


@pytest.mark.parametrize(
    ("settings", "autocast", "types"),
    [
        ({"precision": "bf16"}, True, {"bfloat16", "float32"}),
        ({"precision": "bf16", "trained_weights": "fp32"}, False, {"bfloat16", "float32"}),
        ({"precision": "fp32"}, False, {"float32"}),
        ({"method": "full", "precision": "bf16"}, False, {"bfloat16"}),
        ({"method": "full", "trained_weights": "fp32"}, True, {"float32"}),
        ({"method": "full", "precision": "fp32"}, False, {"float32"}),
    ],
)
def test_types_of_weights_and_products(settings: dict[str, Any], autocast: bool, types: set[str], base: Path) -> None:
    config = make_config({"base": base, **settings})
    model = attach(load_base(config, "cpu"), config)
    assert autocasts(config) is autocast
    assert {str(p.dtype).removeprefix("torch.") for p in model.parameters()} == types


def test_bf16_adapters_do_not_keep_their_inputs_in_fp32(base: Path) -> None:
    """peft casts each input of an fp32 adapter: twice the memory of the activations. Counted as autograd saves them."""

    def saved_bytes(trained_weights: str) -> int:
        config = make_config(
            {"base": base, "precision": "bf16", "trained_weights": trained_weights, "attention": "sdpa"}
        )
        model = attach(load_base(config, "cpu"), config)
        sizes: dict[int, int] = {}

        def note(tensor: Any) -> Any:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        from services.trainer.batch import make_batch, row_tensors
        from services.trainer.encode import Row
        from services.trainer.rows import TrainingRow

        batch = make_batch([row_tensors(TrainingRow(Row([7] * 400, [7] * 400), 0))], True, 1.0)
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocasts(config)),
        ):
            loss = model(**batch)["loss"]
        assert torch.isfinite(loss)
        return sum(sizes.values())

    assert saved_bytes("bf16") < 0.7 * saved_bytes("fp32")  # 0.65; with the cast, and autocast after it, 0.73


def test_attention_is_chosen_by_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    bf16, fp32 = torch.bfloat16, torch.float32
    installed = {"flash_attn"}
    find_spec = attention.importlib.util.find_spec
    monkeypatch.setattr(
        attention.importlib.util,
        "find_spec",
        lambda name: name in installed or (name != "flash_attn" and find_spec(name)),
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert attention.choose("auto", "cpu", bf16) == "sdpa"
    assert attention.choose("auto", "cuda", fp32) == "sdpa"
    assert attention.choose("auto", "cuda", bf16) == "flash_attention_2"
    installed.clear()
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: name == "torch.nn.attention.varlen" or None)
    assert attention.choose("auto", "cuda", bf16) == "varlen"
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    assert attention.choose("auto", "cuda", bf16) == "sdpa"
    with pytest.raises(TrainError, match="flash-attn"):
        attention.choose("flash_attention_2", "cuda", bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert attention.choose("auto", "cuda", bf16) == "sdpa"
    with pytest.raises(TrainError, match=r"8\.0"):
        attention.choose("varlen", "cuda", bf16)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/m/Qwen3-1.7B", "Qwen/Qwen3-1.7B"),
        ("/c/hub/models--Qwen--Qwen3-1.7B/snapshots/0a1b", "Qwen/Qwen3-1.7B"),
        ("/m/hospital-model", "hospital-model"),
    ],
)
def test_an_adapter_names_its_base_and_no_path(path: str, name: str) -> None:
    assert base_id(Path(path)) == name


def _truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _retype(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (shutil.rmtree, "there is no base model at"),
        (_truncate, "cannot be used"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no \\*.safetensors"),
        (lambda folder: _retype(folder, model_type="llama"), "'llama': only qwen3"),
        (lambda folder: _retype(folder, use_sliding_window=True), "sliding windows"),
    ],
)
def test_a_base_that_cannot_be_trained_is_refused_in_one_line(
    damage: Any, cause: str, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    damage(folder)
    with pytest.raises(ModelError, match=cause) as error:
        check_base(folder)
    assert "\n" not in str(error.value)


def test_a_base_in_the_hubs_cache_is_a_folder_of_links(base: Path, tmp_path: Path) -> None:
    for path in base.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert check_base(tmp_path)["model_type"] == "qwen3"
