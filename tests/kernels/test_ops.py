"""The front door of the kernels: every backend that runs here against the reference, and the ops' own promises."""

import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from hardsample.kernels import backends as table
from hardsample.kernels import native, ops, reference_attention
from hardsample.kernels.backends import BackendError
from hardsample.kernels.keys import mask_key
from hardsample.kernels.ops import IMAGE, OTHER, TEXT, attention_with_mass, mask_pixels, plan_mass

REPO = Path(__file__).resolve().parents[2]

# Largest differences from the reference in fp32 on the same inputs: output (relative to its largest value), gradients
# (likewise), lse (absolute).
TOLERANCES = {
    torch.float32: {"output": 2e-6, "gradient": 5e-6, "lse": 2e-6},
    torch.float16: {"output": 2e-3, "gradient": 4e-3, "lse": 2e-3},
    torch.bfloat16: {"output": 1.2e-2, "gradient": 3e-2, "lse": 1e-2},
}
LETTERS = {"i": IMAGE, "t": TEXT, ".": OTHER, "_": OTHER}
ATTENTION = [name for name, reason in ops.backends()["attention_with_mass"].items() if not reason]


def assert_masses_close(result, truth, dtype):
    """Within 1e-6 in fp32; from 16-bit inputs within 2e-3 relative where the mass is at least 1e-2, 2e-5 below."""
    assert result.dtype == torch.float32 and result.isfinite().all()
    difference = (result - truth).abs()
    if dtype == torch.float32:
        assert difference.max() <= 1e-6
        return
    large = truth >= 1e-2
    assert (difference[large] <= 2e-3 * truth[large]).all()
    assert (difference[~large] <= 2e-5).all()


@dataclass(frozen=True)
class Case:
    """One call of `attention_with_mass`; `kinds` are letters: i image, t text, . other, _ padding (never seen)."""

    kinds: tuple[str, ...]
    heads: tuple[int, int] = (4, 2)
    dim: int = 32
    queries: int | None = None
    causal: bool = True
    window: int | None = None
    bidirectional: bool = False
    per_head_mask: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self, dtype=torch.float32):
        """Return q, k, v, kinds and the keyword arguments."""
        generator = torch.Generator().manual_seed(len(self.kinds[0]) + self.dim)
        batch, keys = len(self.kinds), len(self.kinds[0])
        queries = keys if self.queries is None else self.queries
        q = torch.randn((batch, self.heads[0], queries, self.dim), generator=generator)
        k, v = (torch.randn((batch, self.heads[1], keys, self.dim), generator=generator) for _ in range(2))
        kinds = torch.tensor([[LETTERS[letter] for letter in row] for row in self.kinds])
        real = torch.tensor([[letter != "_" for letter in row] for row in self.kinds])
        settings = {"causal": self.causal, **self.settings}
        mask = None
        if not real.all() or self.window or self.bidirectional or self.per_head_mask:
            position = torch.arange(keys)
            row = torch.arange(queries)[:, None] + settings.get("query_offset", 0)
            mask = (position <= row) if self.causal else torch.ones(queries, keys, dtype=torch.bool)
            if self.window:
                mask = mask & (position > row - self.window)
            mask = mask[None, None] & real[:, None, None, :]
            if self.bidirectional:
                image = kinds == IMAGE
                mask = mask | (image[:, None, :queries, None] & image[:, None, None, :])
            if self.per_head_mask:
                mask = mask & (torch.rand((batch, self.heads[0], queries, keys), generator=generator) > 0.3)
            settings |= {"mask": mask, "causal": False}
        return q.to(dtype), k.to(dtype), v.to(dtype), kinds.to(torch.int8), settings


CASES = {
    "causal": Case(("ttiiiiiittt....",)),
    "a range of rows": Case(("ttiiiiiittt....",), settings={"rows": (10, 14)}),
    "no rows": Case(("ttiiii..",), settings={"rows": (3, 3)}),
    "per head": Case(("ttiiiiiittt....",), settings={"per_head": True}),
    "a scale of its own": Case(("ttiiiiiittt....",), settings={"scale": 0.5}),
    "not causal": Case(("ttiiii..",), causal=False),
    "one token": Case(("t",)),
    "one token, all text, two rows of the batch": Case(("i", "t")),
    "one head": Case(("ttiiii...",), heads=(1, 1)),
    "heads not grouped": Case(("ttiiii...",), heads=(3, 3)),
    "seven heads a group": Case(("ttiiii...",), heads=(14, 2)),
    "no image": Case(("tttttt...",)),
    "all image": Case(("iiiiiiii",)),
    "no text": Case(("iiiiii..",)),
    "several images": Case(("tiiittiitiiiitt..",)),
    "batch with different kinds": Case(("tiiittiitiiiitt..", "ttttttttttttiii..", "iiiiiiiiiiiiiiiii")),
    "padding left and right": Case(("__tiiitt..", "tiiittt.._", "____tit..."), settings={"rows": (4, 10)}),
    "a row of padding alone": Case(("______", "tiit..")),
    "a sliding window": Case(("ttiiiiiittttt....",), window=5),
    "a bidirectional image": Case(("ttiiiiiittt....",), bidirectional=True),
    "a mask a head": Case(("ttiiiiiittt....", "tiiiiiiiiii...."), per_head_mask=True),
    "decode": Case(("ttiiiiiittt....",), queries=1, causal=False),
    "fewer queries than keys": Case(("ttiiiiiittt....",), queries=4, settings={"query_offset": 11}),
    "aligned top-left": Case(("ttiiiiiittt....",), queries=4),
    "more queries than keys": Case(("ttii",), queries=9),
    "queries before the first key": Case(("ttii..",), queries=6, settings={"query_offset": -3}),
    **{f"head dim {dim}": Case(("tiiiittt...",), dim=dim) for dim in (16, 40, 64, 80, 96, 128, 256)},
    "many tokens": Case(("t" * 30 + "i" * 150 + "t" * 27 + "." * 43,), settings={"rows": (206, 249)}),
}


def truth_of(case, dtype=torch.float32):
    """Return the reference, in fp32, on inputs of this dtype."""
    q, k, v, kinds, settings = case.build(dtype)
    return attention_with_mass(q.float(), k.float(), v.float(), kinds, backend="reference", **settings)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("backend", ATTENTION)
@pytest.mark.parametrize("name", CASES)
def test_every_backend_equals_the_reference(name, backend, dtype):
    case = CASES[name]
    q, k, v, kinds, settings = case.build(dtype)
    result, truth = attention_with_mass(q, k, v, kinds, backend=backend, **settings), truth_of(case, dtype)
    tolerance = TOLERANCES[dtype]
    assert result.output.dtype == dtype
    assert (result.output.float() - truth.output).abs().max() <= tolerance["output"] * truth.output.abs().max()
    visible = truth.lse.isfinite()
    assert not visible.any() or (result.lse.float() - truth.lse)[visible].abs().max() <= tolerance["lse"]
    for mass, wanted in ((result.image, truth.image), (result.text, truth.text)):
        assert mass.shape == wanted.shape
        if mass.numel():
            assert_masses_close(mass, wanted, dtype)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_equals_weights_written_out_in_float64(name):
    case = CASES[name]
    q, k, v, kinds, settings = case.build()
    result = attention_with_mass(q, k, v, kinds, backend="reference", **settings | {"per_head": True, "rows": None})
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = q.double() @ wide_k.transpose(-1, -2) * settings.get("scale", q.shape[-1] ** -0.5)
    mask = settings.get("mask")
    if settings["causal"]:
        offset = settings.get("query_offset", 0)
        mask = torch.arange(k.shape[2]) <= torch.arange(q.shape[2])[:, None] + offset
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    torch.testing.assert_close(result.output.double(), weights @ wide_v, atol=1e-6, rtol=1e-5)
    for mass, kind in ((result.image, IMAGE), (result.text, TEXT)):
        wanted = (weights * (kinds == kind)[:, None, None, :]).sum(-1)
        assert (mass.double() - wanted).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("backend", ATTENTION)
@pytest.mark.parametrize(
    "name", ["causal", "padding left and right", "a mask a head", "seven heads a group", "fewer queries than keys"]
)
def test_gradients_are_those_of_plain_attention(name, backend, dtype):
    q, k, v, kinds, settings = CASES[name].build(dtype)
    settings.pop("rows", None)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    upstream = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    result = attention_with_mass(*inputs, kinds, backend=backend, **settings)
    assert not result.image.requires_grad and not result.text.requires_grad and not result.lse.requires_grad
    gradients = torch.autograd.grad(result.output, inputs, upstream.to(dtype))

    plain = [tensor.detach().float().requires_grad_() for tensor in inputs]
    mask = settings.get("mask")
    if settings["causal"]:
        mask = torch.arange(k.shape[2]) <= torch.arange(q.shape[2])[:, None] + settings.get("query_offset", 0)
    output = torch.nn.functional.scaled_dot_product_attention(*plain, attn_mask=mask, enable_gqa=True)
    for gradient, wanted in zip(gradients, torch.autograd.grad(output, plain, upstream), strict=True):
        assert gradient.dtype == dtype
        assert (gradient.float() - wanted).abs().max() <= TOLERANCES[dtype]["gradient"] * wanted.abs().max()


@pytest.mark.parametrize("backend", ATTENTION)
def test_queries_and_keys_need_not_be_contiguous(backend):
    case = CASES["padding left and right"]
    q, k, v, kinds, settings = case.build()
    turned = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, v)]
    result = attention_with_mass(*turned, kinds, backend=backend, **settings)
    assert_masses_close(result.image, truth_of(case).image, torch.float32)


def test_a_plan_names_the_two_smallest_kinds_and_where_they_are():
    kinds = torch.tensor([[2, 1, 1, 1, 2, 0, 1], [0, 0, 0, 0, 1, 2, 2]], dtype=torch.int8)
    plan = plan_mass(kinds)
    assert plan.order.tolist() == [[OTHER, TEXT, IMAGE], [IMAGE, TEXT, OTHER]]
    assert plan.counts.tolist() == [[1, 2], [1, 2]]
    assert plan.columns.tolist() == [[5, 0, 4, 1, 2, 3, 6], [4, 5, 6, 0, 1, 2, 3]]


def test_a_plan_made_before_gives_the_same_masses():
    q, k, v, kinds, settings = CASES["batch with different kinds"].build()
    fresh = attention_with_mass(q, k, v, kinds, **settings)
    planned = attention_with_mass(q, k, v, kinds, plan=plan_mass(kinds), **settings)
    assert torch.equal(fresh.image, planned.image) and torch.equal(fresh.text, planned.text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 3, 5, 8)}, "their heads must divide"),
        ({"v": torch.zeros(1, 2, 6, 8)}, "k and v must have the same shape"),
        ({"kinds": torch.zeros(1, 5)}, "must be int8"),
        ({"kinds": torch.zeros(1, 4, dtype=torch.int8)}, "kinds is"),
        ({"mask": torch.ones(1, 1, 5, 5)}, "must be bool"),
        ({"mask": torch.ones(5, 5, dtype=torch.bool)}, "must be bool"),
        ({"mask": torch.ones(1, 3, 5, 5, dtype=torch.bool)}, "must be bool"),
        ({"rows": (2, 6)}, "rows are"),
        ({"rows": (3, 2)}, "rows are"),
        ({"backend": "sdpa+fast"}, "backend is 'fast'"),
        ({"backend": "fast"}, "backend is 'fast'"),
        ({"backend": "eager+cpp"}, "attention is 'eager'"),
        ({"backend": "sdpa+cuda"}, "cannot run attention_mass here"),
    ],
)
def test_attention_refuses_what_does_not_fit(change, message):
    arguments = {
        "q": torch.zeros(1, 4, 5, 8),
        "k": torch.zeros(1, 2, 5, 8),
        "v": torch.zeros(1, 2, 5, 8),
        "kinds": torch.zeros(1, 5, dtype=torch.int8),
    }
    with pytest.raises(ValueError, match=message):
        attention_with_mass(**arguments | change)


def test_masses_need_no_matrix_of_all_rows_and_keys():
    """The reference too works through a few rows at a time: what it allocates at once stays under its own bound."""
    q = torch.zeros(1, 8, 3000, 16)
    k = torch.zeros(1, 8, 3000, 16)
    steps = list(reference_attention._scores(q, k, 1.0, (0, 3000)))
    assert max(scores.numel() * 4 for _, _, scores in steps) <= reference_attention._CHUNK_BYTES
    assert [start for start, _, _ in steps] == list(range(0, 3000, steps[0][1]))


def op_samples():
    """Return arguments of each op for torch.library.opcheck."""
    q, k, v, kinds, settings = CASES["padding left and right"].build()
    mask, rows = settings["mask"], (4, 10)
    plan = plan_mass(kinds)
    output, _, lse = reference_attention.attention(q, k, v, kinds, mask, False, 0, 0.2, *rows)
    image = torch.rand(1, 6, 5, 3)
    variants = torch.tensor([[7, 8, 0, 1, 30000, 0, 1, 1, 2, 2]] * 3)
    geometry = [6, 5, 3, 0, 0, 0]
    inputs = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    aten = torch.ops.hardsample
    return {
        "mask_pixels": (
            aten.mask_pixels,
            (image, variants, [0.0] * 3, "pixel", "hwc", geometry, "", image.repeat(3, 1, 1, 1)),
        ),
        "attention_mass": (aten.attention_mass, (q, k, lse, plan.columns, plan.counts, mask, False, 0, 0.2, *rows, "")),
        "fused_attention": (aten.fused_attention, (*inputs, kinds, mask, False, 0, 0.2, *rows, "reference")),
        "attention_backward": (aten.attention_backward, (output, q, k, v, output, lse, mask, False, 0, 0.2, "")),
    }


@pytest.mark.parametrize("name", ["mask_pixels", "attention_mass", "fused_attention", "attention_backward"])
def test_opcheck(name):
    op, arguments = op_samples()[name]
    torch.library.opcheck(op.default, arguments)


@pytest.mark.parametrize("backend", ATTENTION)
def test_attention_compiles_as_one_graph_with_its_gradients(backend):
    q, k, v, kinds, settings = CASES["padding left and right"].build()
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    plan = plan_mass(kinds)

    def loss(q, k, v):
        result = attention_with_mass(q, k, v, kinds, plan=plan, backend=backend, **settings)
        return result.output.square().sum(), result.image, result.text

    plain, compiled = loss(*inputs), torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs)
    for expected, actual in zip(plain, compiled, strict=True):
        torch.testing.assert_close(actual, expected)
    gradients = (torch.autograd.grad(losses[0], inputs) for losses in (plain, compiled))
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_default_backend_and_a_fresh_plan_compile_as_one_graph():
    q, k, v, kinds, settings = CASES["causal"].build()

    def masses(q, k, v, kinds):
        return attention_with_mass(q, k, v, kinds, **settings).image

    compiled = torch.compile(masses, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v, kinds), masses(q, k, v, kinds))


def test_masking_compiles():
    image = torch.rand(3, 20, 30)
    key = mask_key(0, "compiled")

    def masked(image):
        return mask_pixels(image * 2, [0.3, 0.6], [0, 1], [key, key], layout="chw") + 1

    assert torch.equal(torch.compile(masked, backend="aot_eager")(image), masked(image))


def test_what_can_run_is_told_with_reasons():
    result = ops.backends()
    assert list(result) == ["mask_pixels", "attention_with_mass"]
    assert result["mask_pixels"]["reference"] == "" and result["attention_with_mass"]["reference"] == ""
    assert "CUDA" in result["mask_pixels"]["cuda"] and "sdpa+cuda" in result["attention_with_mass"]
    assert ops.chosen(torch.zeros(1))["mask_pixels"] == next(n for n, why in result["mask_pixels"].items() if not why)
    assert list(ops.chosen(torch.zeros(1, dtype=torch.uint8))) == ["mask_pixels"]


def test_the_native_library_is_what_a_cpu_takes():
    if "libhardsample.so was not built" in ops.backends()["mask_pixels"]["cpp"]:
        pytest.skip("libhardsample.so is not built here")
    assert ops.chosen(torch.zeros(1)) == {"mask_pixels": "cpp", "attention_with_mass": "sdpa+cpp"}


def test_a_named_backend_that_cannot_run_says_why():
    with pytest.raises(BackendError, match="cannot run mask_pixels here: it runs on CUDA devices"):
        mask_pixels(torch.zeros(3, 4, 4), [0.5], [0], [(0, 0)], layout="chw", backend="cuda")
    with pytest.raises(BackendError, match="must be one of cpp, triton, cuda, reference"):
        mask_pixels(torch.zeros(3, 4, 4), [0.5], [0], [(0, 0)], layout="chw", backend="numba")


def test_a_gpu_without_a_backend_takes_the_reference_and_warns_once(monkeypatch):
    everywhere = table._table["mask_pixels"]
    broken = [table.Backend(b.name, b.module, b.function, lambda tensor: "it is broken") for b in everywhere[:-1]]
    monkeypatch.setitem(table._table, "mask_pixels", [*broken, everywhere[-1]])
    monkeypatch.setattr(table, "_warned", set())
    with FakeTensorMode():
        tensor = torch.empty(1, device="cuda")
        with pytest.warns(UserWarning, match="slow PyTorch reference on cuda:0 .*cpp: it is broken; triton: it is"):
            assert table.choose("mask_pixels", tensor).name == "reference"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert table.choose("mask_pixels", tensor).name == "reference"


def test_an_installation_without_compiler_and_without_triton_runs_on_the_reference():
    code = (
        "import sys\n"
        "from hardsample.kernels import native\n"
        "from pathlib import Path\n"
        "sys.modules['triton'] = None\n"
        "native.__file__ = '/nowhere/native.py'\n"
        "import importlib.util as util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'triton' else found(name, *rest)\n"
        "import torch\n"
        "from hardsample.kernels import ops\n"
        "image = ops.mask_pixels(torch.ones(3, 4, 4), [1.0], [0], [(0, 0)], layout='chw')\n"
        "q = torch.ones(1, 2, 4, 8)\n"
        "kinds = torch.tensor([[1, 1, 2, 0]], dtype=torch.int8)\n"
        "mass = ops.attention_with_mass(q, q, q, kinds, causal=True)\n"
        "print(ops.chosen(q), image.sum().item(), mass.image[0].tolist(), ops.backends()['mask_pixels']['triton'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{'mask_pixels': 'reference', 'attention_with_mass': 'sdpa+reference'} 0.0 [1.0, 1.0")
    assert "triton is not installed" in done.stdout


def test_a_forked_process_uses_one_thread(monkeypatch):
    assert native.num_threads() == torch.get_num_threads()
    monkeypatch.setattr(native, "_owner", -1)
    assert native.num_threads() == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_every_gpu_backend_equals_the_reference(dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none here")
    failures = []
    for name, case in CASES.items():
        for backend, reason in ops.backends("cuda", dtype)["attention_with_mass"].items():
            if not reason:
                failures += [f"{name}, {backend}: {text}" for text in gpu_differences(case, backend, dtype)]
    assert not failures, "\n".join(failures)


def gpu_differences(case, backend, dtype):
    """Yield what is wrong with a backend on a GPU; calls that its vendor does not support are skipped."""
    q, k, v, kinds, settings = case.build(dtype)
    moved = {n: value.cuda() if isinstance(value, torch.Tensor) else value for n, value in settings.items()}
    inputs = [tensor.detach().cuda().requires_grad_() for tensor in (q, k, v)]
    if "+" in backend and ops.why_not_sdpa(inputs[0]):
        return
    if backend.startswith("flash-attn") and (
        "mask" in settings or settings.get("query_offset", 0) or q.shape != k.shape
    ):
        return
    plain = [tensor.detach().float().requires_grad_() for tensor in (q, k, v)]
    truth = attention_with_mass(*plain, kinds, backend="reference", **settings)
    try:
        result = attention_with_mass(*inputs, kinds.cuda(), backend=backend, **moved)
        result.output.float().square().sum().backward()
        truth.output.square().sum().backward()
        for mass, wanted in ((result.image, truth.image), (result.text, truth.text)):
            if mass.numel():
                assert_masses_close(mass.cpu(), wanted, dtype)
    except (RuntimeError, AssertionError) as error:
        yield f"{type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}"
        return
    pairs = [("output", result.output, truth.output)]
    pairs += [("gradient", tensor.grad, reference.grad) for tensor, reference in zip(inputs, plain, strict=True)]
    for name, actual, expected in pairs:
        difference = (actual.detach().float().cpu() - expected.detach()).abs().max()
        if not difference <= TOLERANCES[dtype][name] * expected.detach().abs().max().clamp(min=1.0):
            yield f"{name} differs by {difference:.2e}"


def test_masses_add_little_to_the_memory_of_attention():
    """At the size of the bench: T = 1,500, 1,024 image tokens, 256 rows, 28/4 heads, D = 128: at most 64 MB more."""
    code = (
        "import resource, torch\n"
        "from hardsample.kernels.ops import attention_with_mass\n"
        "def peak():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "q, k = torch.randn(1, 28, 1500, 128), torch.randn(1, 4, 1500, 128)\n"
        "kinds = torch.tensor([[2] * 110 + [1] * 1024 + [2] * 110 + [0] * 256], dtype=torch.int8)\n"
        "attend = torch.nn.functional.scaled_dot_product_attention\n"
        "attend(q, k, k, is_causal=True, enable_gqa=True)\n"
        "before = peak()\n"
        "attention_with_mass(q, k, k, kinds, causal=True, rows=(1244, 1500))\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 64


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said without a GPU is tested where there is none")
def test_backends_of_a_device_that_is_not_there_say_so():
    table = ops.backends("cuda")
    assert table.keys() == ops.backends().keys() and list(table["mask_pixels"]) == list(ops.backends()["mask_pixels"])
    assert all("PyTorch cannot use cuda" in reason for reasons in table.values() for reason in reasons.values())
