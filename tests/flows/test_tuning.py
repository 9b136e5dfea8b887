"""`loam tune` on a tiny OLMoE: documents in, a tuned Hugging Face folder out, done once."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from pipelines.errors import DataError, RecipeError
from pipelines.indexed import load_shards
from pipelines.recipe import settings_from
from pipelines.tokenizer import TokenizerSettings, load_tokenizer, train_tokenizer

SETS = ["tokens=512", "sequence_length=16", "batch_tokens=64", "learning_rate=1e-3", "validation_share=0.2",
        "precision=fp32", "device=cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`documents.parquet` and `model/`."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    folder = tmp_path_factory.mktemp("tune")
    texts = [f"{n} and {n} are {2 * n}, and {n} more are {3 * n}." for n in range(40)]
    pq.write_table(pa.table({"id": [str(n) for n in range(40)], "text": texts}), folder / "documents.parquet")
    train_tokenizer([folder / "documents.parquet"], folder, TokenizerSettings(vocab_size=290))
    (folder / "tokenizer").rename(folder / "model")
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=load_tokenizer(folder / "model").vocab_size, hidden_size=16, intermediate_size=8,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=32, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    OlmoeForCausalLM(config).save_pretrained(folder / "model")
    return folder


def tune(folder: Path, out: Path, *sets: str) -> dict:
    arguments = [
        "tune",
        str(folder / "documents.parquet"),
        "--model",
        str(folder / "model"),
        "--out",
        str(out),
        "--json",
    ]
    given = [argument for one in (*SETS, *sets) for argument in ("--set", one)]
    result = CliRunner().invoke(app, [*arguments, *given], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_updates_by_the_command_line(folder: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    told = tune(folder, tmp_path / "out", "lora={rank: 2, alpha: 4}")
    assert told["metrics"]["lora"]["covered_by_kind"]["routed experts"] == 1.0
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert (tmp_path / "out" / "train" / "adapter" / "adapter_config.json").is_file()
    assert not (tmp_path / "out" / ".scratch").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf").config.model_type == "olmoe"
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    tune(folder, tmp_path / "out", "lora={rank: 2, alpha: 4}")
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before


def test_shards_are_taken_as_they_are(folder: Path, tmp_path: Path):
    from pipelines.encode import EncodeSettings, encode

    encode([folder / "documents.parquet"], tmp_path / "shards", folder / "model", EncodeSettings(), name="sums")
    given = [argument for one in SETS for argument in ("--set", one)]
    arguments = ["tune", str(tmp_path / "shards"), "--model", str(folder / "model"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, *given, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.stdout)["metrics"]["domains"]) == ["sums"]


def test_the_same_manifest_comes_again(folder: Path, tmp_path: Path):
    for out in ("one", "two"):
        tune(folder, tmp_path / out)
    manifests = [(tmp_path / out / "manifest.json").read_bytes() for out in ("one", "two")]
    assert manifests[0] == manifests[1]  # no clock and no scratch is an output
    hidden = {part for path in (tmp_path / "one").rglob("*") for part in path.parts if part.startswith(".")}
    assert hidden == {".journal"}


ASKED = [{"prompt": f"{n} and {n}?", "response": f"{2 * n}."} for n in range(40)]


def tuned_on(folder: Path, data: Path, out: Path, *more: str):
    given = [argument for one in SETS for argument in ("--set", one)]
    arguments = ["tune", str(data), "--model", str(folder / "model"), "--out", str(out), *given, *more]
    return CliRunner().invoke(app, arguments)


def test_the_text_is_made_of_fields(folder: Path, tmp_path: Path):
    """Refused with the fields that there are; with a template, the shards are those of the texts that it makes."""
    from pipelines.encode import EncodeSettings, encode

    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ASKED))
    refused = tuned_on(folder, tmp_path / "asked.jsonl", tmp_path / "out").exception
    assert isinstance(refused, DataError)
    assert str(refused) == ("asked.jsonl: no record of 40 has the text {text} (40 no_text); its fields are prompt, "
                            "response; say what the text is, such as --text '{prompt}'")  # fmt: skip
    done = tuned_on(folder, tmp_path / "asked.jsonl", tmp_path / "out", "--text", "{prompt}\\n{response}", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["counts"]["kept"] == 40
    ids = [f"asked.jsonl:{n}" for n in range(40)]
    texts = [f"{one['prompt']}\n{one['response']}" for one in ASKED]
    pq.write_table(pa.table({"id": ids, "text": texts}), tmp_path / "texts.parquet")
    settings = EncodeSettings(validation_share=0.0)
    encode([tmp_path / "texts.parquet"], tmp_path / "whole", folder / "model", settings, name="documents")
    (whole,) = load_shards(tmp_path / "whole").shards
    made = [load_shards(tmp_path / "out" / "tokens" / part).shards[0] for part in ("train", "validation")]
    assert sum(shard.tokens for shard in made) == whole.tokens


def test_documents_of_which_none_is_left_are_counted(folder: Path, tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n{"text": ""}\nno json\n')
    refused = tuned_on(folder, tmp_path / "empty.jsonl", tmp_path / "out").exception
    assert isinstance(refused, DataError)
    assert "empty.jsonl: no document to train on of 3 (" in str(refused)
    assert "expected records with a field `text` that is not empty" in str(refused)
    assert "\n" not in str(refused)


def test_shards_have_no_fields(folder: Path, tmp_path: Path):
    from pipelines.encode import EncodeSettings, encode

    encode([folder / "documents.parquet"], tmp_path / "shards", folder / "model", EncodeSettings(), name="sums")
    refused = tuned_on(folder, tmp_path / "shards", tmp_path / "out", "--text", "{a}").exception
    assert isinstance(refused, RecipeError)
    assert "holds shards" in str(refused)


def test_a_call_that_was_refused_leaves_nothing_to_go_on_from(folder: Path, tmp_path: Path):
    """The same folder, then with the text: not the empty documents of the first call."""
    from trainer.fine_tune import FineTuneSettings, fine_tune

    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ASKED))
    settings = settings_from(FineTuneSettings, SETS)
    with pytest.raises(DataError, match="no record of 40"):
        fine_tune(folder / "model", tmp_path / "asked.jsonl", tmp_path / "out", settings)
    done = fine_tune(folder / "model", tmp_path / "asked.jsonl", tmp_path / "out", settings, text="{response}")
    assert done.counts is not None
    assert done.counts.kept == 40
