"""Models that train on a CPU in minutes: a Llama and a LLaVA of half a million parameters with their own tokenizer.

Weights are drawn at random from a seed; nothing is downloaded. The tokenizer is a byte-level BPE fitted to the texts
that it is given, so every text can be written and none is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from upright.contract import InputError

__all__ = ["tiny_llama", "tiny_llava", "tiny_tokenizer", "transformers"]

_SPECIAL = ("<pad>", "<bos>", "<eos>")
_IMAGE = "<image>"


def transformers() -> Any:
    """Return the package transformers.

    Raises
    ------
    InputError
        When it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise InputError(
            "a language model without the package transformers", "the extra llm", "pip install 'upright[llm]'"
        ) from None
    return transformers


def tiny_tokenizer(texts: Sequence[str], *, vocabulary: int = 2048) -> Any:
    """Fit a byte-level BPE to texts; the same texts give the same tokenizer.

    Parameters
    ----------
    texts : sequence of str
    vocabulary : int
        Most tokens, at least 259: bytes and three special tokens.

    Returns
    -------
    PreTrainedTokenizerFast
        Special tokens ``<pad>``, ``<bos>``, ``<eos>``; no chat template.
    """
    if vocabulary < 256 + len(_SPECIAL):
        raise InputError(f"vocabulary = {vocabulary}", "at least 259", "raise it: 256 bytes and 3 special tokens")
    library = transformers()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(_SPECIAL), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    return library.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=_SPECIAL[0], bos_token=_SPECIAL[1], eos_token=_SPECIAL[2],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def tiny_llama(
    tokenizer: Any, *, hidden: int = 96, layers: int = 3, heads: int = 4, context: int = 256, seed: int = 0
) -> Any:
    """Make a Llama with random weights for a tokenizer; with the defaults and 2,048 tokens 0.53 million parameters.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    hidden, layers, heads : int
        ``hidden`` is a multiple of ``2 * heads``; the feed-forward layer is 8/3 as wide, rounded up to 16.
    context : int
        Most tokens.
    seed : int
        Of the weights; the global generator is left as it was.

    Returns
    -------
    LlamaForCausalLM
        In float32, in evaluation mode, with tied embeddings.
    """
    library = transformers()
    config = _llama_config(tokenizer, hidden=hidden, layers=layers, heads=heads, context=context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = library.LlamaForCausalLM(config)
    return model.eval()


def _llama_config(tokenizer: Any, *, hidden: int, layers: int, heads: int, context: int) -> Any:
    return transformers().LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=-(-8 * hidden // 48) * 16,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=context, tie_word_embeddings=True, initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


def tiny_llava(
    tokenizer: Any,
    *,
    image: int = 48,
    patch: int = 8,
    vision_hidden: int = 64,
    vision_layers: int = 2,
    hidden: int = 96,
    layers: int = 3,
    heads: int = 4,
    context: int = 128,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Make a LLaVA with random weights, a CLIP tower before a Llama; 0.50 million parameters with 750 tokens.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Gains the token ``<image>``, and `context` as its greatest length.
    image, patch : int
        Side of a picture and of its patches in pixels; a picture takes ``(image // patch) ** 2`` tokens.
    vision_hidden, vision_layers : int
        Of the tower; its feed-forward layer is twice as wide.
    hidden, layers, heads, context, seed : int
        As for `tiny_llama`; tower and Llama have equally many heads.

    Returns
    -------
    model : LlavaForConditionalGeneration
        In float32, in evaluation mode, with tied embeddings.
    processor : LlavaProcessor
        It reads pictures with PIL and needs no torchvision; it has no chat template.

    Raises
    ------
    InputError
        When patches do not fill the picture.
    """
    if patch < 1 or image < patch or image % patch:
        raise InputError(
            f"patches of {patch} in a picture of {image} pixels", "whole patches", "let patch divide image"
        )
    library = transformers()
    tokenizer.add_special_tokens({"additional_special_tokens": [_IMAGE]})
    tokenizer.model_max_length = context
    vision = library.CLIPVisionConfig(
        hidden_size=vision_hidden, intermediate_size=2 * vision_hidden, num_hidden_layers=vision_layers,
        num_attention_heads=heads, image_size=image, patch_size=patch,
    )  # fmt: skip
    text = _llama_config(tokenizer, hidden=hidden, layers=layers, heads=heads, context=context)
    config = library.LlavaConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=True,
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE), image_seq_length=(image // patch) ** 2,
        vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = library.LlavaForConditionalGeneration(config)
    side = {"height": image, "width": image}
    pictures = library.CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, resample=2, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )  # 2 is bilinear
    processor = library.LlavaProcessor(
        image_processor=pictures, tokenizer=tokenizer, patch_size=patch, vision_feature_select_strategy="default",
        image_token=_IMAGE, num_additional_image_tokens=1,
    )  # fmt: skip
    return model.eval(), processor
