"""What every test may ask for. Thread counts are set here, before anything imports torch."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    NUMBA_NUM_THREADS="1",
    POLARS_MAX_THREADS="1",
    RAYON_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    DO_NOT_TRACK="1",
    LOAM_PROGRESS="0",  # a slow machine adds no line to what a test reads
)

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from pipelines.document import conform, table_of

settings.register_profile("loam", deadline=None)  # a busy machine is no failure
settings.load_profile("loam")

BESIDE = Path(__file__).resolve().parents[1].parent / "shared"

SENTENCES = (
    "The river carries sand and clay down to the plain every spring.",
    "A loam holds water longer than sand and drains faster than clay.",
    "Farmers turn the field before the first rain of the season.",
    "Measured over ten years, the yield rose where the soil was mixed.",
    "Nobody had written down which proportion grew the better wheat.",
)


def _beside(name: str) -> Path:
    folder = BESIDE / name
    if not folder.is_dir():
        pytest.skip(f"needs real data in ../shared/{name} beside the repository")
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real text beside the repository, `../shared/data`; the test is skipped where it is absent."""
    return _beside("data")


@pytest.fixture(scope="session")
def published() -> Path:
    """Published tables beside the repository, `../shared/published`; the test is skipped where it is absent."""
    return _beside("published")


@pytest.fixture
def tiny_documents(tmp_path: Path) -> Path:
    """One Parquet file with twelve documents of two domains, of five to eight sentences each."""
    rows = []
    for number in range(12):
        chosen = [SENTENCES[(number + step * (number + 1)) % len(SENTENCES)] for step in range(5 + number % 4)]
        domain = ("field", "river")[number % 2]
        rows.append({"id": f"doc-{number:02d}", "text": f"Note {number}. " + " ".join(chosen), "domain": domain})
    path = tmp_path / "documents" / "part-00000.parquet"
    path.parent.mkdir()
    pq.write_table(conform(table_of(rows)), path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Qwen3 and a byte-level BPE of 300 tokens, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=letters, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=304, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=32, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder
