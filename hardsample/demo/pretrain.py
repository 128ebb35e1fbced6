"""Train the demo model: `python -m hardsample.demo.pretrain RUN_DIR` (resumes a stopped run; see the model card).

There are three stages, each a row of STAGES. First the vision tower learns from dense labels (which digit, shape and
colour covers each patch of a packed image), because from answers alone it does not learn digits. Then the whole model
learns to answer. Last, a share of the answers is spoiled in a structured way (a digit off by one, two colours swapped),
more of them at a large shift: the model then knows the right answer but does not always give it, which is what
reinforcement learning improves.

`--family gemma3` and `--scale quarter` (or `four`) make other models the same way, and `--steps-share 0.5` halves every
stage. pretrain.json records the settings of a run and the seconds of each stage. Other questions are given as a
`Material`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hardsample.demo import build
from hardsample.demo.generator import (
    COLOURS,
    SHAPES,
    SIDE,
    Canvas,
    Draw,
    digit_images,
    draw_knobs,
    draw_shift,
    make_record,
)

SAVE_EVERY = 200
DENSE_HEADS = {"digit": 11, "shape": len(SHAPES) + 1, "colour": len(COLOURS) + 1}


@dataclass(frozen=True)
class Stage:
    """One stage of training: its steps, batch size (images), peak learning rate, and what is trained."""

    name: str
    steps: int
    batch: int
    learning_rate: float
    frozen_tower: float
    """Share of the stage, from its start, in which the tower is frozen; then it learns at a tenth of the rate."""
    masked: float
    """Share of the images that are masked, each with up to half of its pixels."""


STAGES = (
    Stage("dense", 4_000, 48, 1.0e-3, 0.0, 0.5),
    Stage("answers", 4_400, 64, 1.2e-3, 0.4, 0.25),
    Stage("spoiled", 800, 64, 3.0e-4, 1.0, 0.25),
)
FIRST_RECORD = {"answers": 0, "spoiled": 400_000}
"""Where in the pretraining split each stage starts."""

RATES = {"quarter": 1.5, "one": 1.0, "four": 0.6}
"""Scale → factor of the stages' learning rates: a narrower model tolerates a larger one (guessed, not tuned)."""


@dataclass(frozen=True)
class Material:
    """The questions that a model is pretrained on."""

    name: str
    make_record: Callable[[str, int], dict[str, Any]]
    """(split, index) → record with its `image`, `question` and `solution`; at least 460,000 of split pretrain."""
    dense_scene: Callable[[int, float], tuple[np.ndarray, np.ndarray]]
    """(index, share of masked images) → image, and the dense labels of each patch, int64 (heads, 64)."""
    spoil: Callable[[Draw, dict[str, Any]], str]
    """(draw, record) → the record's answer, or a spoiled one."""
    heads: dict[str, int]
    """Name and number of classes of each row of dense labels."""
    texts: tuple[str, ...] = ()
    """Questions and answers whose words are missing from the demo's tokenizer."""


def mask_some(draw: Draw, image: np.ndarray, share: float) -> np.ndarray:
    """Blacken up to half of the pixels of an image, with probability `share`."""
    if draw.below(1000) >= share * 1000:
        return image
    noise = (draw.noise(127)[..., :1] + 127).astype(np.uint8)
    return np.where(noise < draw.below(128), 0, image).astype(np.uint8)


def dense_scene(index: int, masked: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image packed with digits and shapes of many sizes, and return it with its dense labels.

    Returns:
        uint8 (96, 96, 3) and int64 (3, 64): digit (10 = none), shape, colour (last = none) by patch.
    """
    draw = Draw(7, index)
    knobs = draw_knobs(draw, draw_shift(draw, "pretrain"))
    canvas = Canvas(draw, knobs)
    digits, palette = digit_images()["pretrain"], list(COLOURS.values())
    none = (10, len(SHAPES), len(COLOURS))
    labels, owner = [none], np.zeros((SIDE, SIDE), dtype=np.int64)
    for quadrant in range(4):
        size = draw.between(8, 24)
        pitch = min(size + draw.between(0, 6), 48)
        down, right = draw.below(48 - size + 1) % pitch, draw.below(48 - size + 1) % pitch
        for y in range(quadrant // 2 * 48 + down, quadrant // 2 * 48 + 49 - size, pitch):
            for x in range(quadrant % 2 * 48 + right, quadrant % 2 * 48 + 49 - size, pitch):
                kind = draw.below(10)
                if kind == 0:
                    continue
                if kind < 7:
                    digit = draw.below(10)
                    hands = digits[digit]
                    width = size * draw.between(13, 16) // 16
                    canvas.digit(hands[draw.below(len(hands))], canvas.ink(), y, x, size, width)
                    labels.append((digit, none[1], none[2]))
                else:
                    shape, colour = draw.below(len(SHAPES)), draw.below(len(COLOURS))
                    canvas.shape(SHAPES[shape], palette[colour], y, x, size)
                    labels.append((10, shape, colour))
                owner[y : y + size, x : x + size] = len(labels) - 1
    canvas.strokes(knobs.clutter)
    return mask_some(draw, canvas.finish(), masked), patch_labels(owner, np.array(labels), 4)


def patch_labels(owner: np.ndarray, labels: np.ndarray, least: int) -> np.ndarray:
    """Return the label that covers most of each patch, or none (row 0) if it covers less than 1 / `least` of it.

    Args:
        owner: int64 (96, 96), the row of `labels` that each pixel belongs to.
        labels: int64 (objects, heads).
        least: see above.

    Returns:
        int64 (heads, 64).
    """
    side, patch = SIDE // build.PATCH, build.PATCH
    patches = owner.reshape(side, patch, side, patch).transpose(0, 2, 1, 3).reshape(side * side, -1)
    rows = np.arange(side * side)[:, None] * len(labels)
    counts = np.bincount((patches + rows).ravel(), minlength=side * side * len(labels)).reshape(-1, len(labels))
    counts[:, 0] = patch**2 // least
    return labels[counts.argmax(1)].T


def is_spoiled(draw: Draw, shift: int) -> bool:
    """Draw whether to spoil an answer, with probability 0.5 (shift 0) to 0.8 (shift 256)."""
    return draw.below(256) < 128 + shift * 3 // 10


def spoil(draw: Draw, record: dict[str, Any]) -> str:
    """Return the record's answer, or a spoiled one: a digit off by one, or two colours swapped."""
    answer = str(record["solution"])
    if not is_spoiled(draw, int(record["shift"])):
        return answer
    if answer[0].isalpha():
        words = answer.split()
        index = draw.below(len(words) - 1)
        words[index], words[index + 1] = words[index + 1], words[index]
        return " ".join(words)
    digits = [match.start() for match in re.finditer(r"\d", answer)]
    position = digits[draw.below(len(digits))]
    return answer[:position] + str((int(answer[position]) + (1 if draw.below(2) else 9)) % 10) + answer[position + 1 :]


DEMO = Material("demo", make_record, dense_scene, spoil, DENSE_HEADS)


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 pays: without AMX or AVX-512 BF16 a CPU takes forty times as long as in float32."""
    cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type != "cpu" or cpu


class Images(Dataset):
    """The images of one stage as float tensors, with dense labels or with token ids, by index."""

    def __init__(self, stage: Stage, start: int, material: Material = DEMO, family: str = "llava") -> None:
        self.stage, self.start, self.material = stage, start, material
        self.encode = encoder(build.build_processor(family, material.texts))

    def __len__(self) -> int:
        return (self.stage.steps - self.start) * self.stage.batch

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        index += self.start * self.stage.batch
        if self.stage.name == "dense":
            image, labels = self.material.dense_scene(index, self.stage.masked)
            return to_tensor(image), torch.from_numpy(labels)
        index += FIRST_RECORD[self.stage.name]
        record, draw = self.material.make_record("pretrain", index), Draw(9, index)
        spoiled = self.stage.name == "spoiled"
        answer = self.material.spoil(draw, record) if spoiled else str(record["solution"])
        image = mask_some(draw, record["image"], self.stage.masked)
        return to_tensor(image), *self.encode(str(record["question"]), answer)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Convert a 96 × 96 image as the processor does: float32 (3, 96, 96) in −1 … 1."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1


def encoder(processor: Any) -> Callable[[str, str], tuple[torch.Tensor, torch.Tensor]]:
    """Return a function (question, answer) → token ids of both, and the labels (−100 on the prompt)."""
    tokenizer = processor.tokenizer

    @cache
    def prompt_ids(question: str) -> list[int]:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return tokenizer(build.expand_image(processor, text), add_special_tokens=False).input_ids

    def encode(question: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
        prompt = prompt_ids(question)
        target = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        return torch.tensor(prompt + target), torch.tensor([-100] * len(prompt) + target)

    return encode


def collate(rows: list) -> tuple[torch.Tensor, ...]:
    """Stack images and dense labels, or pad ids with 0 and labels with −100 on the right to a multiple of eight."""
    images, first, *rest = zip(*rows, strict=True)
    if not rest:
        return torch.stack(images), torch.stack(first)
    length = -(-max(map(len, first)) // 8) * 8
    ids, labels = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), -100)
    for row, (row_ids, row_labels) in enumerate(zip(first, rest[0], strict=True)):
        ids[row, : len(row_ids)], labels[row, : len(row_labels)] = row_ids, row_labels
    return torch.stack(images), ids, labels


def loss_of(stage: Stage, model: Any, heads: torch.nn.ModuleDict, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the mean cross entropy of a batch for the task of the stage."""
    images, *targets = batch
    if stage.name == "dense":
        features = model.model.vision_tower(images).last_hidden_state
        features = features[:, features.shape[1] % 2 :]  # CLIP's has a class token before the patches
        losses = [
            torch.nn.functional.cross_entropy(head(features).flatten(0, 1).float(), targets[0][:, row].flatten())
            for row, head in enumerate(heads.values())
        ]
        return torch.stack(losses).sum()
    ids, labels = targets
    # Gemma3's image tokens attend to each other; these types tell it where they are
    types = {"token_type_ids": (ids == model.config.image_token_id).long()} if family_of(model) == "gemma3" else {}
    # padding is on the right: the causal mask suffices
    return model(input_ids=ids, pixel_values=images, labels=labels, **types).loss


def family_of(model: Any) -> str:
    """Return `llava` or `gemma3`."""
    return str(model.config.model_type)


def build_heads(model: Any, material: Material) -> torch.nn.ModuleDict:
    """Return a linear head on the tower for each row of dense labels."""
    width = model.config.vision_config.hidden_size
    torch.manual_seed(1)
    return torch.nn.ModuleDict({name: torch.nn.Linear(width, size) for name, size in material.heads.items()})


def train(stage: Stage, model: Any, heads: torch.nn.ModuleDict, run: Path, material: Material = DEMO) -> float:
    """Run one stage from its last checkpoint in `run` to its end.

    Returns:
        Seconds that the stage took, including those before the checkpoint.
    """
    tower = model.model.vision_tower
    dense = stage.name == "dense"
    rest = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    groups: list[dict[str, Any]] = [
        {"params": list(tower.parameters()), "scale": 1.0 if dense else 0.1},
        {"params": list(heads.parameters()) if dense else rest, "scale": 1.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, weight_decay=0.05, betas=(0.9, 0.98), foreach=True)
    path, first, before = run / f"{stage.name}.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=model.device)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        first, before = state["step"], state.get("seconds", 0.0)
    images = Images(stage, first, material, family_of(model))
    loader = DataLoader(images, stage.batch, num_workers=1, collate_fn=collate, prefetch_factor=8)
    began, running = time.time(), None
    for step, batch in enumerate(loader, start=first):
        frozen = step < stage.frozen_tower * stage.steps
        tower.requires_grad_(not frozen)
        progress = step / stage.steps
        rate = stage.learning_rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=fast_bfloat16(model.device)):
            loss = loss_of(stage, model, heads, tuple(tensor.to(model.device) for tensor in batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"] if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            pace = (time.time() - began) / (step + 1 - first)
            print(f"{stage.name} {step + 1}/{stage.steps} loss {running:.4f} {pace:.3f} s/step", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
            state = {"model": model.state_dict(), "heads": heads.state_dict(), "optimizer": optimizer.state_dict()}
            seconds = before + time.time() - began
            torch.save(state | {"step": step + 1, "seconds": seconds}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
            before, began, first = seconds, time.time(), step + 1
    tower.requires_grad_(True)
    return before


def main(arguments: Sequence[str] | None = None, material: Material = DEMO) -> None:
    """Train every stage that the run has not finished and write the model to RUN_DIR/model."""
    options = parse(arguments)
    run: Path = options.run
    if options.threads:
        torch.set_num_threads(options.threads)
    run.mkdir(parents=True, exist_ok=True)
    model = build.build_model(build.SCALES[options.scale], family=options.family, texts=material.texts)
    heads = build_heads(model, material)
    stages = [
        replace(
            stage,
            steps=max(1, round(stage.steps * share)),
            learning_rate=stage.learning_rate * RATES[options.scale],
        )
        for stage, share in zip(STAGES, options.steps_share, strict=True)
    ]
    record = describe(options, model, material, stages)
    check_same(run / "pretrain.json", record)
    model.to(options.device).train()
    heads.to(options.device)
    if options.device == "cpu":
        model.set_attn_implementation("eager")  # at 88 tokens a third faster on a CPU than SDPA's backward
    model.model.vision_tower.compile()
    model.model.language_model.compile()
    for stage in stages:
        record["seconds"][stage.name] = round(train(stage, model, heads, run, material))
        (run / "pretrain.json").write_text(json.dumps(record, indent=2) + "\n")
    model.set_attn_implementation("sdpa")
    build.save(model.cpu(), run / "model", build.build_processor(options.family, material.texts))
    print(f"done: {run / 'model'}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, with one share of the steps for each stage."""
    parser = argparse.ArgumentParser(prog="pretrain", description="Train a small model; resume where it was stopped.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="its checkpoints, pretrain.json and model/")
    parser.add_argument("--family", choices=build.SPECIAL, default="llava")
    parser.add_argument(
        "--scale", choices=build.SCALES, default="one", help="multiple of the 3.4 million parameters of `one`"
    )
    parser.add_argument(
        "--steps-share",
        type=share,
        nargs="+",
        default=[1.0],
        metavar="SHARE",
        help=f"share of the steps of every stage, in (0, 1]; or one for each of {', '.join(s.name for s in STAGES)}",
    )
    parser.add_argument("--threads", type=int, help="threads of torch (default: all cores)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    options = parser.parse_args(arguments)
    if len(options.steps_share) == 1:
        options.steps_share *= len(STAGES)
    if len(options.steps_share) != len(STAGES):
        parser.error(f"--steps-share has {len(options.steps_share)} values; give one, or one for each of the stages")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: there is no CUDA device; omit it")
    return options


def share(text: str) -> float:
    """Return a number in (0, 1]."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


def describe(options: argparse.Namespace, model: Any, material: Material, stages: Sequence[Stage]) -> dict[str, Any]:
    """Return the content of pretrain.json."""
    return {
        "material": material.name,
        "family": options.family,
        "scale": options.scale,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "width": model.config.text_config.hidden_size,
        "layers": model.config.text_config.num_hidden_layers,
        "image_tokens": build.IMAGE_TOKENS,
        "stages": [asdict(stage) for stage in stages],
        "steps_share": options.steps_share,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": options.device,
        "seconds": {},
    }


def check_same(path: Path, record: dict[str, Any]) -> None:
    """Write the record of a new run, or check that the existing one has the same settings and keep its seconds.

    Raises:
        SystemExit: the folder holds another run.
    """
    if path.exists():
        existing = json.loads(path.read_text())
        for name in ("material", "family", "scale", "stages"):
            if existing[name] != record[name]:
                raise SystemExit(
                    f"{path} belongs to a run with {name} {existing[name]!r}, this one has {record[name]!r}: "
                    "give the same options, or another RUN_DIR"
                )
        record["seconds"] = existing["seconds"]
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
