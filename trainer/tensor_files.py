"""Safetensors read and written one tensor at a time, so that a model larger than memory passes through.

What a file holds is known from its header, so names and shapes are checked before any number is read. A file is written
from a list of shapes and a stream of pieces, in the order of the list; only the piece at hand is in memory.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipelines.errors import DataError

INDEX = "model.safetensors.index.json"
HELD_BYTES = 256 << 20  # read through one mapping before it is closed, since pages once read stay in memory with it
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}  # as safetensors has them
Shape = tuple[int, ...]


class TensorFiles:
    """The tensors of a folder of safetensors, or of one such file.

    Args:
        place: folder, whose `model.safetensors.index.json` names the files if there is one, or a file.
        prefix: only tensors whose names begin so are seen, under what is left of their names.
        without: of those, the ones whose whole names begin so are not; empty leaves none out.

    Raises:
        DataError: there is none, one that the index names is missing or lies elsewhere, a file cannot be read, or two
            hold the same tensor.
    """

    def __init__(self, place: Path, prefix: str = "", without: str = "") -> None:
        self.place, self._prefix = place, prefix
        self._shapes: dict[str, Shape] = {}
        self._file_of: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._read = 0
        for file in [place] if place.is_file() else _files_of(place):
            with _opened(file) as header:
                for whole in header.keys():  # noqa: SIM118  (not a mapping)
                    if whole.startswith(prefix) and not (without and whole.startswith(without)):
                        name = whole.removeprefix(prefix)
                        if name in self._file_of:
                            both = f"{self._file_of[name]} and {file}"
                            raise DataError(
                                f"tensor {name} is in {both}; expected it once, remove the file that is not the model's"
                            )
                        self._shapes[name] = tuple(header.get_slice(whole).get_shape())
                        self._file_of[name] = file

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape, by name."""
        return self._shapes

    def get(self, name: str) -> Tensor:
        """One tensor, read when it is asked for.

        Raises:
            DataError: the file is shorter than its header says.
        """
        file = self._file_of[name]
        if file not in self._open or self._read > HELD_BYTES:
            self._open, self._read = {file: _opened(file)}, 0
        try:
            tensor = self._open[file].get_tensor(self._prefix + name)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file} cannot be read: {error}") from None
        self._read += tensor.nbytes
        return tensor


def _files_of(folder: Path) -> list[Path]:
    """The files that an index names, or else all that lie there."""
    if (index := folder / INDEX).is_file():
        try:
            named = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise DataError(f"{index} is no index of weights; fetch it again") from None
        for name in named:
            if Path(name).name != name:  # what lies elsewhere is not hashed with the folder
                raise DataError(f"{index} names {name!r}; expected files of its own folder")
            if not (folder / name).is_file():
                raise DataError(f"{folder / name} is missing, though {INDEX} names it; fetch it again")
        return [folder / name for name in named]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder} has no *.safetensors; pickled weights are not read, convert them first")
    return files


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None


def write_tensors(
    path: Path, shapes: Mapping[str, Shape], pieces: Iterable[Tensor], digest: Any = None,
    types: Mapping[str, torch.dtype] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Write one safetensors file.

    Args:
        path: to write; not atomically.
        shapes: of each tensor, in the order in which they are written.
        pieces: their numbers in that order; one tensor may come in several pieces, but no piece spans two.
        digest: of `hashlib`, told every byte while it is at hand.
        types: of those tensors that are not fp32; bf16 rounds to the nearest, ties to even.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        kept = types.get(name, torch.float32)
        begin, end = end, end + kept.itemsize * _numbers(shape)
        header[name] = {"dtype": NAMES[kept], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)  # tensors begin at whole cache lines
    written = 0
    each = [(types.get(name, torch.float32), _numbers(shape)) for name, shape in shapes.items()]
    with path.open("wb") as file:
        for block in _blocks(text, each, pieces):
            if digest is not None:
                digest.update(block)
            written += file.write(block)
    assert written == 8 + len(text) + end, "pieces do not fill their tensors"


def _blocks(
    header: bytes, tensors: Iterable[tuple[torch.dtype, int]], pieces: Iterable[Tensor]
) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little") + header
    stream = iter(pieces)
    for kept, left in tensors:
        while left > 0:
            numbers = next(stream).detach().to("cpu", kept).contiguous().flatten()
            left -= len(numbers)
            yield numbers.view(torch.uint8).numpy().data


def _numbers(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
