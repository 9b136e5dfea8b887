"""A trained model as a Hugging Face folder, which transformers, vLLM and lm-eval load without code of ours.

The vocabulary is cut to what the tokenizer knows, every expert gets tensors of its own, and the bytes depend on the
checkpoint and the tokenizer alone. `check_export` compares the logits of both models: an export is not believed
before transformers has computed the same.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.errors import DataError, StepError
from pipelines.files import write_atomically
from pipelines.tokenizer import load_tokenizer, write_tokenizer
from trainer.checkpoint import load_checkpoint, load_model
from trainer.hf_format import config_of, to_hf
from trainer.loop import torch_threads

MAX_FILE_BYTES = 4 << 30
TOLERANCE = 1e-4  # fp32 logits of the same weights summed in another order differ by about 1e-6
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip
OLD_VLLM = "vLLM up to 0.23 also scales the shared expert of dots1 by routed_scaling; 0.32 does not"


def export_hf(
    checkpoint: Path, out: Path, tokenizer: Path | None = None, max_file_bytes: int = MAX_FILE_BYTES
) -> dict[str, Any]:
    """Write a checkpoint in Hugging Face format.

    Args:
        checkpoint: folder of a finished model (`trainer.checkpoint`).
        out: folder to fill with config, generation config, weights in safetensors (fp32) and tokenizer.
        tokenizer: tokenizer folder or file; without one the folder holds none and the vocabulary is not cut.
        max_file_bytes: weights are divided into files of at most this size, an index beside them.

    Returns:
        Metrics: architecture, parameters, vocab_size, rows cut from the embedding, files, caveats for other engines.

    Raises:
        DataError: the checkpoint is damaged, or the tokenizer has more tokens than the model.
    """
    settings, tensors = load_checkpoint(checkpoint)
    rows, eos_id = settings.vocab_size, None
    if tokenizer is not None:
        known = load_tokenizer(tokenizer)
        if known.vocab_size > rows:
            raise DataError(f"{tokenizer} has {known.vocab_size} tokens, the model only {rows}; give its own tokenizer")
        settings, eos_id = settings.with_vocabulary(known.vocab_size), known.eos_id
    out.mkdir(parents=True, exist_ok=True)
    config = config_of(settings, eos_id)
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", {"do_sample": False, "eos_token_id": eos_id})
    files = _write_weights(out, to_hf(tensors, settings), max_file_bytes)
    if tokenizer is not None:
        _write_tokenizer(tokenizer, out)
    scaled = settings.experts and settings.routed_scaling != 1.0
    return {
        "architecture": config["architectures"][0],
        "parameters": settings.parameters(),
        "active_parameters": settings.active_parameters(),
        "vocab_size": settings.vocab_size,
        "vocab_rows_cut": rows - settings.vocab_size,
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


def _write_weights(out: Path, tensors: Mapping[str, Tensor], max_file_bytes: int) -> int:
    """Write the weights in order of their names; returns the number of files."""
    groups: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in sorted(tensors.items()):
        if groups[-1] and filled + tensor.nbytes > max_file_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = tensor
        filled += tensor.nbytes
    if len(groups) == 1:
        save_file(groups[0], out / "model.safetensors", metadata={"format": "pt"})
        return 1
    places = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file(group, out / file, metadata={"format": "pt"})
        places |= dict.fromkeys(group, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})
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
