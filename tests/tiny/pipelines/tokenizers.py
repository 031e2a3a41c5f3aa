"""Real tokenizers with vocabularies made on the spot: one token for each character or byte."""

import string

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer, T5Tokenizer

CLIP_TOKENS = 77
CLIP_VOCAB_SIZE = 514
T5_VOCAB_SIZE = 128
BYTE_VOCAB_SIZE = 272  # bytes, special tokens, and some that are never used
LONGEST_TEXT = 4096

_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())

QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
# As Mistral's own: a message is a list of chunks.
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set open, close = ('[SYSTEM_PROMPT]', '[/SYSTEM_PROMPT]') if message['role'] == 'system' "
    "else ('[INST]', '[/INST]') %}"
    "{{ open }}{% for chunk in message['content'] %}"
    "{{ chunk['text'] if chunk['type'] == 'text' else '[IMG]' }}{% endfor %}{{ close }}"
    "{% endfor %}"
)


def clip_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer as those of CLIP; its two special tokens come last."""
    characters = [*_BYTES, *(f"{byte}</w>" for byte in _BYTES)]
    tokens = [*characters, "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=CLIP_TOKENS)


def t5_tokenizer(max_tokens: int) -> T5Tokenizer:
    """Return a tokenizer as T5's: what is outside its characters is one unknown token."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    characters = string.ascii_letters + string.digits + string.punctuation
    vocab = [*special, *((character, -3.0) for character in characters)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=max_tokens)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Return a tokenizer as Qwen's, with its template for chats."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: index for index, token in enumerate([*_BYTES, *special])}
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        additional_special_tokens=special[1:],
        chat_template=QWEN_TEMPLATE,
        model_max_length=LONGEST_TEXT,
    )


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer as Mistral's, with its template for chats; it pads on the left."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    special += ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "<pad>"]
    vocab = {token: index for index, token in enumerate([*special, *_BYTES])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=special[3:-1],
        padding_side="left",
        chat_template=MISTRAL_TEMPLATE,
        model_max_length=LONGEST_TEXT,
    )
