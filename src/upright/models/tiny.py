"""Models that train on a CPU in minutes: a Llama of about half a million parameters with its own tokenizer.

Weights are drawn at random from a seed; nothing is downloaded. The tokenizer is a byte-level BPE fitted to the texts
that it is given, so every text can be written and none is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from upright.contract import InputError

__all__ = ["tiny_llama", "tiny_tokenizer", "transformers"]

_SPECIAL = ("<pad>", "<bos>", "<eos>")


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
    config = library.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=-(-8 * hidden // 48) * 16,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=context, tie_word_embeddings=True, initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = library.LlamaForCausalLM(config)
    return model.eval()
