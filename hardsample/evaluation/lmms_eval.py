"""A model for lmms-eval: `lmms_eval --model hardsample --model_args pretrained=MODEL --tasks …`.

lmms-eval finds it by the entry point `hardsample` of the group `lmms_eval.models`, which names `manifest`. It is no
dependency: nothing here imports it before it asks for the manifest or the class.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hardsample.data.images import DEFAULT_MAX_PIXELS
from hardsample.data.records.conversation import RecordError, Turn, read_conversation
from hardsample.engines.protocol import Request
from hardsample.engines.results import Completion
from hardsample.engines.transformers import TransformersEngine
from hardsample.errors import ConfigError
from hardsample.scoring.config import ScoringConfig

logger = logging.getLogger(__name__)

NAME = "hardsample"
CLASS_PATH = f"{__name__}.HardsampleModel"

Settings = tuple[float, int | None]
"""Temperature and the most new tokens: what requests of one batch share."""


def manifest() -> Any:
    """Give what lmms-eval registers: the model's name and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, simple_class_path=CLASS_PATH)


def __getattr__(name: str) -> Any:
    """`HardsampleModel`, made when it is asked for, since its base class is lmms-eval's."""
    if name != "HardsampleModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmms_eval.api.model import lmms

    made = type(name, (Answering, lmms), {"__doc__": Answering.__doc__, "__module__": __name__})
    globals()[name] = made  # the same class each time
    return made


class Answering:
    """Answer lmms-eval's requests with the transformers engine: images, batches, greedy or sampled.

    Args:
        pretrained: folder or hub id of a vision-language model, or `demo`.
        batch_size: requests in one `generate` call, at least 1; `auto` is 16, halved when memory runs out.
        device: torch device; default the first GPU, else the CPU.
        dtype: name of a torch dtype; default float32 on a CPU, the checkpoint's on a GPU.
        attn_implementation: name of an attention implementation of transformers.
        seed: of the sampling noise.
        max_pixels: images beyond it are refused.
        trust_remote_code: run code that the checkpoint brings.
        max_batch_size: taken and not used, as lmms-eval hands it to every model.
    """

    is_simple = True
    task_dict: dict[str, Any]

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 16,
        device: str | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        seed: int = 0,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        trust_remote_code: bool = False,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        size = 16 if str(batch_size).startswith("auto") else int(batch_size)
        if size < 1:
            raise ConfigError(f"batch_size is {batch_size}, must be at least 1: give one, such as 16")
        config = ScoringConfig(
            seed=int(seed),
            temperature=0.0,
            max_pixels=int(max_pixels),
            batch_size=size,
            device=device,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            features=False,
        )
        self.engine = TransformersEngine.from_config(pretrained, config, logger.warning).load()
        self._most_tokens = self.engine.max_new_tokens
        self._asked: Counter[str] = Counter()

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests, in their order.

        Args:
            requests: instances whose `args` are (context, generation settings, doc_to_visual, doc_id, task, split).
                Of the settings count `max_new_tokens` (`max_gen_toks`), `temperature`, `do_sample` and `until`.

        Returns:
            The answers, each cut before the first of its `until` stops; "" where a request could not be answered,
            which is logged.

        Raises:
            ValueError: settings ask for what the engine does not do, such as beams.
        """
        answers = [""] * len(requests)
        batches: dict[Settings, list[int]] = {}
        for row, request in enumerate(requests):
            batches.setdefault(read_settings(request.args[1]), []).append(row)
        for (temperature, tokens), rows in batches.items():
            self._set(temperature, tokens)
            while rows:
                now, rows = rows[: self.engine.batch_size], rows[self.engine.batch_size :]
                results = self.engine.generate(self.engine.prepare([self._request(requests[row]) for row in now]))
                for row, result in zip(now, results, strict=True):
                    if isinstance(result, Completion):
                        answers[row] = cut(result.text, requests[row].args[1].get("until"))
                    else:
                        *_, document, task, split = requests[row].args
                        logger.warning("%s, %s, document %s: no answer (%s)", task, split, document, result.reason)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Is not offered; choose a task that generates."""
        raise NotImplementedError(
            f"the model {NAME} generates and gives no log-likelihood: choose a task that generates"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Is not offered; choose a task of one round."""
        raise NotImplementedError(f"the model {NAME} answers in one round: choose a task of one round")

    def _set(self, temperature: float, tokens: int | None) -> None:
        self.engine.temperature = temperature
        self.engine.max_new_tokens = self.engine.model.generation_config.max_new_tokens = tokens or self._most_tokens

    def _request(self, request: Any) -> Request:
        """One request of ours; the same document asked again is another realization, with noise of its own."""
        context, _, doc_to_visual, document, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][document]) or []
        sample = f"{task}/{split}/{document}"
        self._asked[sample] += 1
        prompt, images = read_prompt(str(context), list(visuals))
        return Request({"id": sample, "prompt": prompt, "images": images}, 0.0, self._asked[sample] - 1)


def read_settings(settings: Mapping[str, Any]) -> Settings:
    """Temperature and the most new tokens of a request's settings.

    Raises:
        ValueError: they ask for beams, or to sample with top_p or top_k, which the engine does not do.
    """
    if (settings.get("num_beams") or 1) > 1:
        raise ConfigError(f"num_beams is {settings['num_beams']}, must be 1: the engine has no beam search")
    temperature = float(settings.get("temperature") or 0)
    if settings.get("do_sample") is False:
        temperature = 0.0
    elif settings.get("do_sample") and settings.get("temperature") is None:
        temperature = 1.0
    if temperature and ((settings.get("top_p") or 1) < 1 or settings.get("top_k")):
        raise ConfigError(
            "top_p or top_k is set, the engine samples from all tokens: leave them out, or use temperature 0"
        )
    tokens = settings.get("max_new_tokens") or settings.get("max_gen_toks")
    return temperature, int(tokens) if tokens else None


def read_prompt(context: str, images: list[Any]) -> tuple[list[Turn], list[Any]]:
    """The turns of a context and its images, in order: at its `<image>` places, else before the text."""
    try:
        conversation = read_conversation(context, images, "context")
    except RecordError:  # places that do not match, or no text: the images go first
        text = context.replace("<image>", "").strip()
        blocks = [*({"type": "image", "text": None} for _ in images), {"type": "text", "text": text}]
        return [{"role": "user", "content": blocks}], images
    return conversation.prompt, conversation.images


def cut(text: str, stops: str | Sequence[str] | None) -> str:
    """The text before the first of its stops."""
    for stop in [stops] if isinstance(stops, str) else stops or []:
        if stop:
            text = text.partition(stop)[0]
    return text
