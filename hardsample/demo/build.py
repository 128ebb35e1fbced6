"""Build the demo model and its processor from config: a LLaVA architecture of 3.4 million parameters.

A second family (Gemma3: SigLIP tower, bidirectional attention among image tokens, grouped queries) and other widths are
for experiments; the bundled model is `llava` of width 192.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hardsample.demo.generator import COLOURS, QUESTIONS, SIDE

PATCH = 12
"""Side of a vision patch in pixels: 8 × 8 patches, so 64 image tokens an image."""

IMAGE_TOKENS = (SIDE // PATCH) ** 2

SCALES = {"quarter": 96, "one": 192, "four": 384}
"""Scale → width of tower and language model, four layers each: a quarter of the parameters of `one`, and four times."""

SPECIAL = {
    "llava": ("<pad>", "<s>", "</s>", "<unk>", "<image>"),
    "gemma3": ("<pad>", "<s>", "</s>", "<unk>", "<start_of_image>", "<image_soft_token>", "<end_of_image>"),
}
PLACEHOLDER = {"llava": "<image>", "gemma3": "<start_of_image>"}
"""Family → the placeholder of an image in a prompt before the processor expands it."""

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
"""An answer is formatted as the model writes it: right after the colon, with the end-of-sequence token."""


def vocabulary(family: str = "llava", texts: Iterable[str] = ()) -> dict[str, int]:
    """Return every token: special tokens, words of the questions, colours and digits with and without a space.

    Args:
        family: the family of the special tokens.
        texts: questions and answers of other tasks, whose words are added, with and without a space.
    """
    words = {word for question in QUESTIONS.values() for word in re.findall(TOKEN_PATTERN, " " + question)}
    more = [word for text in texts for word in re.findall(r"[A-Za-z]+", text)]
    words |= {space + token for token in [*COLOURS, *"0123456789", *more] for space in ("", " ")}
    words |= {"\n", " ", ":", ".", ",", "?", "USER", "ASSISTANT", "SYSTEM"}
    return {token: index for index, token in enumerate([*SPECIAL[family], *sorted(words)])}


def build_processor(family: str = "llava", texts: Iterable[str] = ()) -> Any:
    """Return the family's processor: a word-level tokenizer (digits one by one) and the PIL image processor at 96 × 96.

    Args:
        family: `llava` or `gemma3`.
        texts: see :func:`vocabulary`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import Gemma3Processor, LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    inner = Tokenizer(models.WordLevel(vocabulary(family, texts), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN_PATTERN), behavior="isolated")
    inner.decoder = decoders.Fuse()
    image_tokens: dict[str, Any] = {"additional_special_tokens": ["<image>"]}
    if family == "gemma3":
        names = dict(zip(("boi_token", "image_token", "eoi_token"), SPECIAL[family][4:], strict=True))
        image_tokens = {"extra_special_tokens": names}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        **image_tokens,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=4096,
    )
    scaling: dict[str, Any] = {
        "size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    template = CHAT_TEMPLATE.replace("<image>", PLACEHOLDER[family])
    if family == "gemma3":
        images = Gemma3ImageProcessorPil(**scaling)
        return Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=IMAGE_TOKENS)
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(**scaling, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def expand_image(processor: Any, prompt: str) -> str:
    """Replace the image placeholder of a prompt by the image tokens, as the processor does."""
    if hasattr(processor, "full_image_sequence"):
        return prompt.replace(processor.boi_token, processor.full_image_sequence)
    return prompt.replace(processor.image_token, processor.image_token * IMAGE_TOKENS)


def build_model(
    width: int = 192, layers: int = 4, seed: int = 0, family: str = "llava", texts: Iterable[str] = ()
) -> Any:
    """Return a model with random weights.

    Args:
        width: hidden size of tower and language model, a multiple of 32 (of 96 for `gemma3`).
        layers: number of layers of each (an even number for `gemma3`).
        seed: seed of the initial weights.
        family: `llava` or `gemma3`.
        texts: see :func:`vocabulary`.

    Returns:
        `LlavaForConditionalGeneration` or `Gemma3ForConditionalGeneration` in float32, its generation config set to 16
        new tokens, sampled.
    """
    import torch
    from transformers import GenerationConfig

    tokens = vocabulary(family, texts)
    ends = {
        "pad_token_id": tokens["<pad>"],
        "bos_token_id": tokens["<s>"],
        "eos_token_id": tokens["</s>"],
    }
    torch.manual_seed(seed)
    model = {"llava": _llava, "gemma3": _gemma3}[family](width, layers, tokens, ends)
    model.generation_config = GenerationConfig(
        max_new_tokens=16, do_sample=True, top_k=0, **ends
    )  # the sampling settings of `score`
    return model


def _llava(width: int, layers: int, tokens: dict[str, int], ends: dict[str, int]) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(**_sizes(width, layers), image_size=SIDE, patch_size=PATCH, projection_dim=width)
    text = LlamaConfig(
        **_sizes(width, layers),
        **ends,
        vocab_size=len(tokens),
        num_key_value_heads=width // 32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokens["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def _gemma3(width: int, layers: int, tokens: dict[str, int], ends: dict[str, int]) -> Any:
    """Return a small Gemma3: three queries per key, alternating sliding and full layers, tied embeddings.

    Its projector pools 1 × 1 patches: finer patches, pooled 2 × 2, take four times as long for the same 64 tokens.
    """
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    vision = SiglipVisionConfig(**_sizes(width, layers), image_size=SIDE, patch_size=PATCH, vision_use_head=False)
    text = Gemma3TextConfig(
        **_sizes(width, layers),
        **ends,
        vocab_size=len(tokens),
        num_key_value_heads=width // 96,
        head_dim=32,
        query_pre_attn_scalar=32,
        layer_types=["sliding_attention", "full_attention"] * (layers // 2),
        sliding_window=1024,
        max_position_embeddings=4096,
    )
    config = Gemma3Config(
        vision_config=vision,
        text_config=text,
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=tokens["<start_of_image>"],
        image_token_index=tokens["<image_soft_token>"],
        eoi_token_index=tokens["<end_of_image>"],
    )
    model = Gemma3ForConditionalGeneration(config)
    # transformers initialises the projection to zero, since it is normally loaded: the tower would get no gradient
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=config.initializer_range)
    return model


def _sizes(width: int, layers: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": width * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
    }


def save(model: Any, directory: Path, processor: Any = None) -> None:
    """Write the model as bf16 safetensors, with its processor (by default the demo model's), to `directory`."""
    import copy

    import torch

    saved = copy.deepcopy(model).to(torch.bfloat16)
    saved.save_pretrained(directory)
    (processor or build_processor()).save_pretrained(directory)
