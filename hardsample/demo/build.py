"""The embedded model's parts, from config: a LLaVA-architecture model of 3.2 million parameters, and its processor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hardsample.demo.generator import COLOURS, QUESTIONS, SIDE

PATCH = 12
"""Side of a vision patch in pixels: 8 × 8 patches, so 64 image tokens a picture."""

TOKEN_PATTERN = r" ?[A-Za-z]+| ?[0-9]|[^A-Za-z0-9 ]| "
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set answer = message['role'] == 'assistant' %}"
    "{{ 'USER:' if message['role'] == 'user' else 'ASSISTANT:' if answer else 'SYSTEM:' }}"
    "{% if message['content'] is string %}{{ '' if answer else ' ' }}{{ message['content'] }}"
    "{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}<image>{% else %}{{ '' if answer else ' ' }}{{ block['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '</s>' if answer else '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""An answer stands as the model writes it: right after the colon, with the end-of-sequence token."""


def vocabulary() -> dict[str, int]:
    """Every token: the special ones, the words of the questions, the colours and digits with and without a space."""
    words = {word for question in QUESTIONS.values() for word in re.findall(TOKEN_PATTERN, " " + question)}
    words |= {space + token for token in [*COLOURS, *"0123456789"] for space in ("", " ")}
    words |= {"\n", " ", ":", ".", ",", "?", "USER", "ASSISTANT", "SYSTEM"}
    return {token: place for place, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<image>", *sorted(words)])}


def build_processor() -> Any:
    """The LLaVA processor: a word-level tokenizer (digits one by one) and the PIL image processor at 96 × 96."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    inner = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN_PATTERN), behavior="isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=4096,
    )
    images = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(width: int = 192, layers: int = 4, seed: int = 0) -> Any:
    """A LLaVA model with random weights.

    Args:
        width: hidden size of tower and language model, a multiple of 32.
        layers: number of layers of each.
        seed: of the initial weights.

    Returns:
        `LlavaForConditionalGeneration` in float32, its generation config set to 16 new tokens.
    """
    import torch
    from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokens = vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=width,
    )
    text = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=tokens["<pad>"],
        bos_token_id=tokens["<s>"],
        eos_token_id=tokens["</s>"],
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokens["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        max_new_tokens=16,
        pad_token_id=tokens["<pad>"],
        bos_token_id=tokens["<s>"],
        eos_token_id=tokens["</s>"],
    )
    return model


def save(model: Any, directory: Path) -> None:
    """Write the model as bf16 safetensors, with its processor, to `directory`."""
    import copy

    import torch

    shipped = copy.deepcopy(model).to(torch.bfloat16)
    shipped.save_pretrained(directory)
    build_processor().save_pretrained(directory)
