"""Weights as a safetensors file that carries the digest of all the rest of it."""

import json
from collections.abc import Mapping
from hashlib import sha256

import safetensors
from safetensors.torch import load, save
from torch import Tensor

DIGEST = "sha256"
"""In the file's metadata: of the file with `UNSEALED` in its place."""
UNSEALED = "0" * 64
LENGTH_SIZE = 8
"""Bytes before the header, which say how long it is."""
ALIGNMENT = 8
"""Of the weights after it; the header ends with spaces."""


def packed(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of the file."""
    # Contiguous for safetensors, which stores no memory format.
    tensors = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
    content = _sorted(save(tensors, {"format": "pt", **metadata, DIGEST: UNSEALED}))
    return content.replace(UNSEALED.encode(), sha256(content).hexdigest().encode(), 1)


def _sorted(content: bytes) -> bytes:
    """The same file with its metadata in order, in which safetensors has none: of the same weights
    there is one file, with one digest."""
    end = LENGTH_SIZE + int.from_bytes(content[:LENGTH_SIZE], "little")
    fields = json.loads(content[LENGTH_SIZE:end])
    fields["__metadata__"] = dict(sorted(fields["__metadata__"].items()))
    header = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    return len(header).to_bytes(LENGTH_SIZE, "little") + header + content[end:]


def unpacked(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights and the metadata of a file's content.

    Raises:
        ValueError: it is not what `packed` has made: cut short, changed, or something else.
    """
    try:
        end = LENGTH_SIZE + int.from_bytes(content[:LENGTH_SIZE], "little")
        header = content[:end]
        metadata: dict[str, str] = json.loads(header[LENGTH_SIZE:])["__metadata__"]
        stated = metadata.pop(DIGEST)
        found = sha256(header.replace(stated.encode(), UNSEALED.encode(), 1))
        found.update(memoryview(content)[end:])
        if found.hexdigest() != stated:
            raise ValueError
        return load(content), metadata
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        safetensors.SafetensorError,
    ) as error:
        raise ValueError("its digest does not fit") from error
