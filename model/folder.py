"""The files of a Hugging Face folder: config.json, safetensors in one file or in shards, and what lies beside them.

Reading and writing are exact inverses: tensors bit for bit, keys of config.json that are not ours kept as they were.
A checkpoint file holds each expert's three matrices; the model keeps them in two tensors a layer (``split_experts``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

FLOATS = ("F32", "BF16", "F16")  # what safetensors calls them
MAX_SHARD_BYTES = 5 * 10**9
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Files beside the weights that an exported folder needs to serve: tokenizer, chat template, generation defaults.
COMPANION_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of ``names``, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def local_folder(path: str, patterns: Iterable[str]) -> Path:
    """``path`` itself where it is a folder; otherwise the files of that hub id, downloaded or from the cache."""
    if Path(path).is_dir():
        return Path(path)
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise FileNotFoundError(f"{path!r}: no such folder, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, allow_patterns=list(patterns)))


# --- reading --------------------------------------------------------------------------------------------------------


def read_config(path: str) -> dict[str, Any]:
    """``config.json`` of a folder or hub id.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object.
    """
    folder = local_folder(path, ["config.json"])
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path}: expected a Hugging Face folder with config.json, got {_content(folder)}")
    return _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of the decoder as well as of the parser
        raise ValueError(f"{file}: expected JSON, got a file that does not parse ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(values).__name__}")
    return values


def _content(folder: Path) -> str:
    return some(sorted(entry.name for entry in folder.iterdir()), 8) or "an empty folder"


class WeightFiles:
    """The safetensors files of a folder or hub id; opening reads names and shapes, not the tensors.

    Raises:
        FileNotFoundError: no safetensors, or a shard that the index names is not there.
        ValueError: an unreadable file or index, a tensor that two files hold, or two sets of weights in one folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}  # by tensor name
        self._files: dict[Path, list[str]] = {}  # the names that each file holds
        for file in _weight_files(path):
            with _opened(file) as tensors:
                self._files[file] = list(tensors.keys())
                for name in self._files[file]:
                    if name in self.shapes:
                        raise ValueError(f"{path}: {name} is in {file.name} and in another shard; expected it once")
                    entry = tensors.get_slice(name)
                    if entry.get_dtype() not in FLOATS:
                        raise ValueError(
                            f"{path}: expected tensors of {', '.join(FLOATS)}, got {name} in {entry.get_dtype()}; "
                            "nothing else is trained: convert the weights first"
                        )
                    self.shapes[name] = tuple(entry.get_shape())

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor under its name in the files, one at a time; it may be mapped from the file: copy, don't keep."""
        for file, names in self._files.items():
            with _opened(file) as tensors:
                for name in names:
                    yield name, tensors.get_tensor(name)


def _weight_files(path: str) -> list[Path]:
    folder = local_folder(path, ["*.safetensors", INDEX, "config.json"])
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(f"{path}: expected {WEIGHTS} or {INDEX}, got {_content(folder)}{_hint(folder)}")
        return [folder / WEIGHTS]
    places = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(
            f"{folder / INDEX}: expected the names of tensors and their files under weight_map, got {places!r:.80}"
        )
    files = sorted({folder / name for name in places.values()})
    lost = [file.name for file in files if not file.is_file()]
    if lost:
        raise FileNotFoundError(f"{path}: {INDEX} names {some(lost)}, which is not there; got {_content(folder)}")
    if (folder / WEIGHTS).is_file() and folder / WEIGHTS not in files:
        raise ValueError(
            f"{path}: expected one set of weights, got {WEIGHTS} and the shards of {INDEX}; remove the stale one"
        )
    return files


def _hint(folder: Path) -> str:
    if any(folder.glob("*.bin")):
        return ". Pickled weights are not read: load them with transformers and save_pretrained once"
    if any(folder.glob("model-*.safetensors")):
        return f". Shards need their {INDEX}"
    return ""


def _opened(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file}: expected a whole safetensors file, got one that does not open ({error})") from error


def split_experts(state: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each layer's ``gate_up_proj`` [E, 2I, H] and ``down_proj`` [E, H, I] as matrices of single experts.

    Names become those of a checkpoint file; other tensors pass. Everything is a view.
    """
    for name, tensor in state:
        layer, _, last = name.rpartition(".")
        if last == "gate_up_proj" and layer.endswith(".mlp.experts"):
            for expert, pair in enumerate(tensor.unbind(0)):
                gate, up = pair.chunk(2, dim=0)
                yield f"{layer}.{expert}.gate_proj.weight", gate
                yield f"{layer}.{expert}.up_proj.weight", up
        elif last == "down_proj" and layer.endswith(".mlp.experts"):
            for expert, down in enumerate(tensor.unbind(0)):
                yield f"{layer}.{expert}.down_proj.weight", down
        else:
            yield name, tensor


# --- writing --------------------------------------------------------------------------------------------------------


def write_folder(
    values: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    folder: str | Path,
    *,
    source: str = "",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """config.json of ``values``, ``state`` (checkpoint names) as safetensors, and the companion files of ``source``.

    Weights that were in the folder before are replaced. No more than one shard is held beside ``state``.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = _readable_by_all(values, {str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    for stale in (*folder.glob("model*.safetensors"), folder / INDEX):
        stale.unlink(missing_ok=True)
    shards = _shards(state, max_shard_bytes)
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _own_storage(state[name]) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        size = sum(tensor.nbytes for tensor in state.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    copy_companion_files(source, folder)


def _readable_by_all(values: Mapping[str, Any], dtypes: set[str]) -> dict[str, Any]:
    """One dtype, and the rope keys of transformers 4 beside those of 5: without them 4 takes base 10,000, silently."""
    written = dict(values)
    if len(dtypes) == 1:
        written.pop("torch_dtype", None)  # transformers 4's name of it
        written["dtype"] = dtypes.pop()
    rope = dict(written.get("rope_parameters") or {})
    if rope:
        written["rope_theta"] = rope.pop("rope_theta")
        written["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return written


def _shards(state: Mapping[str, torch.Tensor], max_bytes: int) -> list[list[str]]:
    """Names in order, cut before the shard would outgrow ``max_bytes``; a larger tensor has a shard to itself."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """An expert is a view of its layer's tensor; safetensors wants tensors that share nothing."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def copy_companion_files(source: str, folder: Path) -> None:
    """Copy tokenizer, chat template and generation_config beside exported weights; what is absent is left absent."""
    if not source:
        return
    origin = local_folder(source, COMPANION_FILES)
    for name in COMPANION_FILES:
        if (origin / name).is_file() and (origin / name).resolve() != (folder / name).resolve():
            shutil.copyfile(origin / name, folder / name)
