"""A trained model as a Hugging Face folder, which transformers, vLLM and lm-eval load without code of ours.

The vocabulary is cut to what the tokenizer knows, every expert gets tensors of its own, and the bytes depend on the
checkpoint, the tokenizer and the precision alone; one tensor is in memory at a time. `check_export` compares the logits
of both models: an export is not believed before transformers has computed the same.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import DataError, StepError
from pipelines.files import write_atomically
from pipelines.recipe import Section
from pipelines.tokenizer import load_tokenizer, write_tokenizer
from trainer.checkpoint import load_model, open_checkpoint
from trainer.device import torch_threads
from trainer.families.family import Family
from trainer.families.registry import family_of
from trainer.families.tensors import EMBEDDING, HEAD, Piece, Shape, copies_of, pieces_of
from trainer.model_recipe import ModelSettings
from trainer.tensor_files import INDEX, TensorFiles, write_tensors

MAX_FILE_BYTES = 4 << 30
TOLERANCE = 1e-4  # fp32 logits of the same weights summed in another order differ by about 1e-6
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip
PRECISIONS = {"fp32": ("float32", torch.float32), "bf16": ("bfloat16", torch.bfloat16)}
FP32_ALWAYS = "e_score_correction_bias"  # moved by 0.001 a step: bf16 could not tell two steps apart
OLD_VLLM = "vLLM up to 0.23 also scales the shared expert of dots1 by routed_scaling; 0.32 does not"


class ExportSettings(Section):
    """How a model is exported.

    Attributes:
        precision: of the weights on disk; `bf16` rounds all but the routers' balancing biases.
    """

    precision: Literal["fp32", "bf16"] = "fp32"


def export_hf(
    checkpoint: Path, out: Path, tokenizer: Path | None = None, max_file_bytes: int = MAX_FILE_BYTES,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, Any]:  # fmt: skip
    """Write a checkpoint in Hugging Face format.

    Args:
        checkpoint: folder of a finished model (`trainer.checkpoint`).
        out: folder to fill with config, generation config, weights in safetensors and tokenizer.
        tokenizer: tokenizer folder or file; without one the folder holds none and the vocabulary is not cut.
        max_file_bytes: weights are divided into files of at most this size, an index beside them.
        precision: of the weights on disk; bf16 rounds all but the routers' balancing biases.

    Returns:
        Metrics: architecture, parameters, vocab_size, rows cut from the embedding, files, caveats for other engines.

    Raises:
        DataError: the checkpoint is damaged, or the tokenizer has more tokens than the model.
        RecipeError: no class of transformers computes a model of this shape; the message says what stands in the way.
    """
    shape, tensors = open_checkpoint(checkpoint)
    rows, eos_id = shape.vocab_size, None
    if tokenizer is not None:
        known = load_tokenizer(tokenizer)
        if known.vocab_size > rows:
            raise DataError(f"{tokenizer} has {known.vocab_size} tokens, the model only {rows}; give its own tokenizer")
        shape, eos_id = shape.with_vocabulary(known.vocab_size), known.eos_id
    out.mkdir(parents=True, exist_ok=True)
    family = family_of(shape)
    config = family.config_of(shape, eos_id) | {"dtype": PRECISIONS[precision][0]}
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", {"do_sample": False, "eos_token_id": eos_id})
    files = _write_weights(out, _entries(tensors, shape, family), max_file_bytes, PRECISIONS[precision][1])
    if tokenizer is not None:
        _write_tokenizer(tokenizer, out)
    scaled = family.model_type == "dots1" and shape.router.scaling != 1.0
    return {
        "architecture": config["architectures"][0],
        "parameters": shape.parameters(),
        "active_parameters": shape.active_parameters(),
        "vocab_size": shape.vocab_size,
        "vocab_rows_cut": rows - shape.vocab_size,
        "files": files,
        "caveats": [OLD_VLLM] if scaled else [],
    }


def check_export(checkpoint: Path, hf_dir: Path, tokens: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """Compare the logits of a checkpoint with those that transformers computes from its export, both in fp32.

    Args:
        checkpoint: folder of the finished model.
        hf_dir: what `export_hf` wrote.
        tokens: integers (T,), a text; cut to the model's longest sequence.
        tolerance: largest difference that is accepted.

    Returns:
        Largest absolute difference over all positions and exported tokens.

    Raises:
        StepError: the difference is larger, or not a number.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    ours = load_model(checkpoint)
    theirs = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32, local_files_only=True).eval()
    tokens_BT = torch.from_numpy(np.array(tokens[: ours.settings.max_sequence], dtype=np.int64)).unsqueeze(0)
    assert tokens_BT.numel() > 0
    with torch_threads(1), torch.inference_mode():  # the difference goes into a manifest: the same on every run
        theirs_BTV = theirs(input_ids=tokens_BT, use_cache=False).logits
        ours_BTV = ours(tokens_BT)[..., : theirs_BTV.shape[-1]]
    difference = (ours_BTV - theirs_BTV).abs().max().item()
    if not difference <= tolerance:
        raise StepError(
            f"{hf_dir}: its logits differ from the checkpoint's by {difference:.3g}, more than {tolerance:g}"
        )
    return difference


@dataclass(frozen=True)
class _Entry:
    """Tensors of a file that come from one of the checkpoint: shapes by name, and how to get their numbers."""

    shapes: Mapping[str, Shape]
    numbers: Callable[[], Iterator[Tensor]]


def _entries(files: TensorFiles, settings: ModelSettings, family: Family) -> list[_Entry]:
    """All that is written, in order: every tensor, then the output projection and the copies that engines ask for."""
    found = [
        _Entry(piece.sources, partial(_theirs, files, piece))
        for piece in pieces_of(settings, family, family.neighbours)
    ]
    table, head = "embed_tokens.weight", "embed_tokens.weight" if settings.tie_embeddings else HEAD
    again = {HEAD: table} if settings.tie_embeddings and not family.ties else {}
    if family.copies:
        again |= {name: table if of == EMBEDDING else head for name, of in copies_of(settings).items()}
    shape = (settings.vocab_size, settings.width)
    return found + [_Entry({name: shape}, partial(_rows, files, of, shape[0])) for name, of in again.items()]


def _theirs(files: TensorFiles, piece: Piece) -> Iterator[Tensor]:
    for _, tensor in piece.theirs(files.get(piece.name)):
        yield tensor


def _rows(files: TensorFiles, name: str, rows: int) -> Iterator[Tensor]:
    yield files.get(name)[:rows]


def _write_weights(out: Path, entries: Sequence[_Entry], max_file_bytes: int, kept: torch.dtype) -> int:
    """Write the weights; returns the number of files."""
    shapes = {name: shape for entry in entries for name, shape in entry.shapes.items()}
    types = {name: torch.float32 if name.endswith(FP32_ALWAYS) else kept for name in shapes}
    sizes = {name: types[name].itemsize * torch.Size(shape).numel() for name, shape in shapes.items()}
    groups: list[dict[str, Shape]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        if groups[-1] and filled + sizes[name] > max_file_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = shape
        filled += sizes[name]
    stream = (tensor for entry in entries for tensor in entry.numbers())
    if len(groups) == 1:
        write_tensors(out / "model.safetensors", groups[0], stream, types=types)
        return 1
    places = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_tensors(out / file, group, islice(stream, len(group)), types=types)
        places |= dict.fromkeys(group, file)
    _write_json(out / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})
    return len(groups)


def _write_tokenizer(tokenizer: Path, out: Path) -> None:
    """Copy a tokenizer that transformers can load, chat template included; write any other form in that form."""
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    if (folder / "tokenizer.json").is_file() and (folder / "tokenizer_config.json").is_file():
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / name)
    else:
        write_tokenizer(load_tokenizer(tokenizer), out)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
