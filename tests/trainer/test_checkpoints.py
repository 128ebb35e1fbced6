"""What is saved comes back to the bit, and what is missing or damaged is an error."""

import json

import numpy as np
import pytest
import torch

from hardsample.trainer import checkpoints
from hardsample.trainer.selection.states import StateError, split_arrays

CPU = torch.device("cpu")
ARRAYS = {
    "successes": np.array([0.0, np.nan, np.inf, -0.0], dtype=np.float32),
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3).T[:, 1],  # neither contiguous nor owned
    "levels": np.arange(12, dtype=np.uint8).reshape(3, 4)[::-1, ::2],
    "touched": np.empty(0, dtype=np.int64),
    "flags": np.array([True, False]),
}


def part(seed):
    made = torch.Generator().manual_seed(seed)
    return {
        "completion_ids": torch.randint(0, 9, (2, 3), generator=made),
        "advantages": torch.randn(2, generator=made).to(torch.bfloat16),
        "pixel_values": torch.randn(2, 3, 4, 4, generator=made).transpose(2, 3),
        "num_items_in_batch": torch.tensor(7),
        "mask": torch.tensor([[True, False]]),
        "a.name.with.dots": torch.tensor([seed]),
        "empty": torch.empty(0, 3),
        "num_images": [1, 2],
        "nothing": None,
        "factor": 0.5,
    }


def assert_same_part(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name
        else:
            assert value == expected[name]


def test_what_all_ranks_share_comes_back(tmp_path):
    parts = [{"step": 1, "weights": ARRAYS["weights"]}, {"step": 2, "weights": ARRAYS["levels"]}]
    state = {"version": 1, "counters": {"rollouts": 3}, "name": "λ*", "refreshed": None, "flags": ARRAYS["flags"]}
    state |= {"evidence": {"size": 4, "levels": {"ratios": [0.0], **ARRAYS}}, "stream": {"samplers": parts}}
    checkpoints.save_shared(tmp_path / "a/difficulty", state)
    loaded = checkpoints.load_shared(tmp_path / "a/difficulty")
    (arrays, rest), (loaded_arrays, loaded_rest) = split_arrays(state), split_arrays(loaded)
    assert loaded_rest == rest and loaded["stream"]["samplers"][1]["step"] == 2
    assert loaded_arrays.keys() == arrays.keys() and "stream.samplers.1.weights" in arrays
    for path, array in arrays.items():
        assert loaded_arrays[path].dtype == array.dtype
        np.testing.assert_array_equal(loaded_arrays[path], array)


def test_an_older_state_in_the_folder_is_replaced(tmp_path):
    checkpoints.save_shared(tmp_path, {"a": 1, **ARRAYS})
    checkpoints.save_shared(tmp_path, {"b": 2, "c": np.ones(1)})
    assert checkpoints.load_shared(tmp_path) == {"b": 2, "c": np.ones(1)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "state.safetensors"]


def test_arrays_that_belong_nowhere_are_an_error(tmp_path):
    checkpoints.save_shared(tmp_path, {"evidence": {"successes": np.ones(1)}})
    (tmp_path / "state.json").write_text('{"other": {}}')
    with pytest.raises(StateError, match=r"'evidence\.successes' belongs to a part that the saved state lacks"):
        checkpoints.load_shared(tmp_path)


@pytest.mark.parametrize("buffer", [None, [], [part(0)], [part(1), part(2), {}]])
def test_a_rank_s_own_comes_back(tmp_path, buffer):
    header = {"step": 3, "metrics": {"reward": [0.5, float("nan")]}, "balances": [[1, None]]}
    checkpoints.save_rank(tmp_path / "difficulty", 2, buffer, header)
    loaded = checkpoints.load_json(tmp_path / "difficulty", 2)
    assert loaded.keys() == header.keys() and loaded["step"] == 3 and np.isnan(loaded["metrics"]["reward"][1])
    again = checkpoints.load_buffer(tmp_path / "difficulty", 2, CPU)
    if buffer is None:
        assert again is None
    else:
        assert len(again) == len(buffer)
        for stored, reloaded in zip(buffer, again, strict=True):
            assert_same_part(stored, reloaded)


def test_tensors_that_share_memory_and_ask_for_gradients(tmp_path):
    whole = torch.arange(6.0, requires_grad=True)
    checkpoints.save_rank(tmp_path, 0, [{"whole": whole}, {"half": whole[::2], "same": whole}], {})
    first, second = checkpoints.load_buffer(tmp_path, 0, CPU)
    assert first["whole"].tolist() == second["same"].tolist() == list(range(6))
    assert second["half"].tolist() == [0, 2, 4] and not first["whole"].requires_grad


def test_ranks_do_not_meet(tmp_path):
    for rank in (0, 1, 10):
        checkpoints.save_rank(tmp_path, rank, [part(rank)], {"step": rank})
    for rank in (0, 1, 10):
        assert checkpoints.load_json(tmp_path, rank) == {"step": rank}
        assert_same_part(checkpoints.load_buffer(tmp_path, rank, CPU)[0], part(rank))
    with pytest.raises(StateError, match=r"rank2\.json is missing.*by other processes than these"):
        checkpoints.load_json(tmp_path, 2)


def broken(path, damage):
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(b"\xff\xfe\x00" * 50)


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "foreign"])
@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "rank0.json", "rank0.safetensors"])
def test_missing_and_damaged_files_are_named(tmp_path, name, damage):
    checkpoints.save_shared(tmp_path, {"a": np.arange(100), "version": 1, "names": ["first", "second"]})
    checkpoints.save_rank(tmp_path, 0, [part(0)], {"step": 1})
    broken(tmp_path / name, damage)
    read = (
        checkpoints.load_shared if name.startswith("state") else lambda folder: checkpoints.load_buffer(folder, 0, CPU)
    )
    with pytest.raises(StateError, match=f"{name} (is missing|cannot be read).*delete its folder difficulty/"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"'])
def test_json_of_another_kind_is_damaged(tmp_path, content):
    checkpoints.save_shared(tmp_path, {})
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(StateError, match=r"state\.json cannot be read"):
        checkpoints.load_shared(tmp_path)


@pytest.mark.parametrize("content", [{"step": 1}, {"step": 1, "buffer": 3}])
def test_a_rank_s_json_without_a_buffer_is_damaged(tmp_path, content):
    checkpoints.save_rank(tmp_path, 0, [part(0), part(1)], {"step": 1})
    (tmp_path / "rank0.json").write_text(json.dumps(content))
    with pytest.raises(StateError, match=r"rank0\.json cannot be read.*damaged"):
        checkpoints.load_buffer(tmp_path, 0, CPU)
    with pytest.raises(StateError, match=r"rank0\.json cannot be read"):
        checkpoints.load_json(tmp_path, 0)


def test_an_interrupted_save_leaves_no_half_file(tmp_path, monkeypatch):
    def full(_, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    checkpoints.save_shared(tmp_path, {"a": np.ones(1), "good": True})
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_arrays", full)
        patched.setattr(checkpoints, "save_file", full)
        with pytest.raises(OSError, match="no space"):
            checkpoints.save_shared(tmp_path, {"a": np.zeros(1), "good": False})
        with pytest.raises(OSError, match="no space"):
            checkpoints.save_rank(tmp_path, 0, [part(0)], {})
    assert checkpoints.load_shared(tmp_path) == {"a": np.ones(1), "good": True}
    with pytest.raises(StateError, match=r"rank0\.json is missing"):
        checkpoints.load_json(tmp_path, 0)


def test_what_json_cannot_hold_is_an_error_and_no_checkpoint(tmp_path):
    with pytest.raises(TypeError):
        checkpoints.save_rank(tmp_path, 0, [part(0)], {"bad": object()})
    assert not (tmp_path / "rank0.json").exists()
