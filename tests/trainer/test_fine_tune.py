"""Fine-tuning a tiny random OLMoE that transformers made: whole and by updates, against transformers itself."""

import json
import os
import re
import runpy
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.errors import DataError, RecipeError
from pipelines.tokenizer import TokenizerSettings, load_tokenizer, train_tokenizer
from trainer.checkpoint import load_model, save_model
from trainer.fine_tune import FineTuneSettings, fine_tune, recipe_of
from trainer.lora import merge
from trainer.lora_adapter import load_adapter
from trainer.model_recipe import ModelSettings
from trainer.router_settings import RouterSettings

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"tokens": 2048, "sequence_length": 32, "batch_tokens": 128, "learning_rate": 5e-3, "precision": "fp32",
         "validation_share": 0.2, "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "answers.parquet"
    texts = [f"Question {n}: what is {n} and {n + 1}? Answer: {n} and {n + 1} are {2 * n + 1}." for n in range(60)]
    pq.write_table(pa.table({"id": [str(n) for n in range(60)], "text": texts}), file)
    return file


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory, documents: Path) -> Path:
    """A folder as a model hub has it, with a tokenizer of its own and a padded vocabulary."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    folder = tmp_path_factory.mktemp("olmoe")
    train_tokenizer([documents], folder, TokenizerSettings(vocab_size=300))
    rows = load_tokenizer(folder / "tokenizer").vocab_size + 5
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, max_position_embeddings=64, eos_token_id=0,
        pad_token_id=None,
    )  # fmt: skip
    OlmoeForCausalLM(config).save_pretrained(folder)
    for file in (folder / "tokenizer").iterdir():
        file.rename(folder / file.name)
    return folder


def loss_of(folder: Path, documents: Path) -> float:
    """Mean loss that transformers computes of the documents."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        texts = pq.read_table(documents)["text"].to_pylist()[:10]
        ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
        return sum(model(input_ids=row, labels=row).loss.item() for row in ids) / len(ids)


def test_a_whole_model_is_tuned(olmoe: Path, documents: Path, tmp_path: Path):
    outcome = fine_tune(olmoe, documents, tmp_path, **QUICK)
    assert outcome.metrics["export"]["architecture"] == "OlmoeForCausalLM"
    assert outcome.metrics["held_out"]["documents"]["loss"] > 0
    assert loss_of(tmp_path / "hf", documents) < loss_of(olmoe, documents) - 0.5
    names = {path.name for path in tmp_path.iterdir()}
    assert {"hf", "tokens", "train"} <= names
    assert not list(tmp_path.rglob(".scratch/*"))


def test_updates_alone_learn_and_come_merged(olmoe: Path, documents: Path, tmp_path: Path):
    from trainer.hf_import import import_hf

    outcome = fine_tune(olmoe, [documents], tmp_path, **QUICK, lora={"rank": 4, "alpha": 16})
    told = outcome.metrics["lora"]
    assert told["covered_by_kind"]["routed experts"] == told["covered_by_kind"]["attention"] == 1.0
    assert told["covered_by_kind"]["routers"] == told["covered_by_kind"]["embeddings"] == 0.0
    assert loss_of(tmp_path / "hf", documents) < loss_of(olmoe, documents) - 0.1
    import_hf(olmoe, tmp_path / "base")
    merged = merge(load_adapter(tmp_path / "train" / "adapter", load_model(tmp_path / "base" / "final")))
    for name, tensor in load_model(tmp_path / "train" / "final").state_dict().items():
        assert torch.equal(tensor, merged.state_dict()[name]), name


def test_a_tuning_that_was_killed_goes_on(
    olmoe: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped by an error after a checkpoint; the second call gives the bytes of an undisturbed one."""
    import trainer.loop as loop

    settings = {**QUICK, "checkpoint_every": 5, "lora": {"rank": 2}}
    fine_tune(olmoe, documents, tmp_path / "whole", **settings)
    step = loop.train_step

    def breaks(run, *rest):
        if run.step == 12:
            raise KeyboardInterrupt
        return step(run, *rest)

    monkeypatch.setattr(loop, "train_step", breaks)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(olmoe, documents, tmp_path / "broken", **settings)
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(loop, "train_step", lambda run, *rest: (seen.append(run.step), step(run, *rest))[1])
    fine_tune(olmoe, documents, tmp_path / "broken", **settings)
    assert seen[0] == 10
    for file in ("train/metrics.jsonl", "train/final/model.safetensors", "train/adapter/adapter_model.safetensors"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_model_of_another_shape_is_refused(tmp_path: Path):
    from trainer.model import new_model
    from trainer.start import first_model

    shape = ModelSettings(layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ffn_width=24, vocab_size=32)
    save_model(tmp_path / "start", new_model(shape, seed=0))
    wider = recipe_of(FineTuneSettings(tokens=2048), shape.model_copy(update={"ffn_width": 32}), "wider")
    with pytest.raises(DataError, match=r"down_proj.weight is \(16, 24\), the recipe's model has \(16, 32\)"):
        first_model(wider, torch.float32, tmp_path / "start")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_eps": 1e-3}, "norm_eps is 1e-06, the recipe's model has 0.001; give"),
        ({"router": RouterSettings(scaling=2.5)}, "router.scaling is 1.0, the recipe's model has 2.5; give"),
        ({"experts_per_token": 1}, "experts_per_token is 2, the recipe's model has 1; give"),
        ({"rope_theta": 1e6}, r"rope_theta is 10000.0, the recipe's model has 1000000.0 \(with a longer"),
        ({"rope_theta": 1e6, "max_sequence": 128}, None),
        ({"router": RouterSettings(aux_loss=0.1, capacity_factor=1.5), "max_sequence": 16, "mtp_weight": 0.1}, None),
    ],
)
def test_the_same_tensors_are_not_taken_for_another_model(tmp_path: Path, change: dict, message: str | None):
    from trainer.model import new_model
    from trainer.start import first_model

    shape = ModelSettings(layers=2, width=16, heads=2, kv_heads=1, head_dim=8, ffn_width=24, vocab_size=32,
                          max_sequence=64, experts=4, expert_width=8)  # fmt: skip
    save_model(tmp_path / "start", new_model(shape, seed=0))
    recipe = recipe_of(FineTuneSettings(tokens=2048, sequence_length=16), shape, "tuned")
    recipe = recipe.model_copy(update={"model": shape.model_copy(update=change)})
    if message is None:
        first_model(recipe, torch.float32, tmp_path / "start")
        return
    with pytest.raises(DataError, match=message):
        first_model(recipe, torch.float32, tmp_path / "start")


def test_a_balancing_bias_stays_unless_asked():
    shape = ModelSettings(layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ffn_width=24, experts=4, expert_width=8)
    softmax = shape.model_copy(update={"router": RouterSettings(score="softmax")})
    rates = [
        recipe_of(FineTuneSettings(tokens=2048, bias_update_rate=rate), one, "").model.router.bias_update_rate
        for one in (shape, softmax)
        for rate in (0.0, 1e-4)
    ]
    assert rates == [0.0, 1e-4, 0.0, 0.0]
    assert recipe_of(FineTuneSettings(tokens=2048, aux_loss=0.02), softmax, "").model.router.aux_loss == 0.02


def test_what_cannot_be_is_said(olmoe: Path, documents: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="fine-tuning: learning_rat: Extra inputs"):
        fine_tune(olmoe, documents, tmp_path, tokens=2048, learning_rat=1.0)
    with pytest.raises(RecipeError, match="must be a multiple of sequence_length"):
        fine_tune(olmoe, documents, tmp_path, **{**QUICK, "batch_tokens": 100})
    with pytest.raises(RecipeError, match="covers no matrix"):
        fine_tune(olmoe, documents, tmp_path, **QUICK, lora={"targets": ["*.shared_experts.*"], "rank": 2})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no shard"):
        fine_tune(olmoe, tmp_path / "empty", tmp_path / "out", **QUICK)


def test_the_example_of_the_guide_runs(olmoe: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What docs/fine-tuning.md shows, word for word, in under ten lines; only the paths are put in place."""
    guide = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) < 10
    monkeypatch.chdir(tmp_path)
    Path("OLMoE-1B-7B-0924").symlink_to(olmoe)
    rows = pq.read_table(documents).to_pylist()
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "example.py").write_text(code.replace('"20M"', '"2048"'))
    runpy.run_path("example.py")
    assert (tmp_path / "tuned" / "hf" / "model.safetensors").is_file()
    assert os.listdir(tmp_path / "tuned" / "train" / "final")
