"""The tasks: real data where it is present, files written here where it is not."""

from __future__ import annotations

import gzip
import io
import lzma
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.tasks import load

from nullport.lab.compare import TASKS, MissingData, Task, load_task
from nullport.lab.compare.files import read_csv, read_idx, read_npy
from nullport.lab.compare.synthetic import STEPS
from nullport.lab.compare.tables import HISTORY, HORIZON
from nullport.lab.compare.texts import CONTEXT, WORDS

SIZES = {
    "digits": ((1437, 8, 8, 1), (360, 8, 8, 1), "image", 10),
    "mnist": ((60_000, 28, 28, 1), (10_000, 28, 28, 1), "image", 10),
    "mnist_autoencoder": ((60_000, 784), (10_000, 784), "vector", 784),
    "cifar10": ((10_000, 32, 32, 3), (2_000, 32, 32, 3), "image", 10),
    "shakespeare": ((15_685, CONTEXT), (1_743, CONTEXT), "tokens", 65),
    "ett": ((8_521, HISTORY, 7), (2_857, HISTORY, 7), "sequence", 7 * HORIZON),
    "wikitext": ((3_400, CONTEXT), (3_837, CONTEXT), "tokens", WORDS + 1),
    "diabetes": ((353, 10), (89, 10), "vector", 1),
    "housing": ((16_512, 13), (4_128, 13), "vector", 1),
}

COMPUTED = {
    "adding": ((8_000, STEPS, 2), (2_000, STEPS, 2), "sequence", 1),
    "poisson": ((8_000, 3), (2_000, 3), "vector", 1),
}

BUNDLED = ("digits", "diabetes")
"""Tasks whose data comes with scikit-learn."""


def test_every_task_is_tested_here() -> None:
    assert {*SIZES, *COMPUTED} == set(TASKS)


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_tasks_have_their_shapes_and_come_out_alike(name: str) -> None:
    task, again = load(name), load(name)
    train, valid, form, outputs = COMPUTED[name]
    assert (task.name, task.form, task.outputs) == (name, form, outputs)
    assert (task.inputs.shape, task.valid_inputs.shape) == (train, valid)
    assert task.inputs.dtype == task.targets.dtype == np.float32
    assert np.array_equal(task.inputs, again.inputs)
    assert 0.1 < task.targets.std() < 1


@pytest.mark.parametrize("name", SIZES)
def test_loads_with_its_shapes_and_scales(name: str) -> None:
    if name in BUNDLED:
        pytest.importorskip("sklearn")
    task = load(name)
    train, valid, form, outputs = SIZES[name]
    assert (task.name, task.form, task.outputs) == (name, form, outputs)
    assert (task.inputs.shape, task.valid_inputs.shape) == (train, valid)
    if task.kind == "language":
        assert task.inputs.dtype == task.targets.dtype == np.int64
        assert np.unique(task.inputs).tolist() == list(range(outputs))
        return
    assert task.inputs.dtype == task.valid_inputs.dtype == np.float32
    assert np.isfinite(task.inputs).all()
    assert np.isfinite(task.valid_inputs).all()
    pixels = name == "mnist_autoencoder"  # scaled all alike
    features = task.inputs.reshape(-1, 1 if pixels else task.inputs.shape[-1])
    features = features[:: 1 + len(features) // 1_000_000].astype(np.float64)
    assert np.abs(features.mean(axis=0)).max() < 0.2
    assert 0.8 < features.std(axis=0).min() <= features.std(axis=0).max() < 1.2
    if task.kind == "classification":
        assert task.targets.dtype == np.int64
        assert np.bincount(task.targets).min() > len(task.targets) / outputs / 2
    else:
        assert task.targets.shape == (len(task.inputs), outputs)
        assert task.targets.dtype == np.float32


def test_digits_parts_share_no_sample() -> None:
    task = load("digits")
    train = {image.tobytes() for image in task.inputs}
    assert not any(image.tobytes() in train for image in task.valid_inputs)


def test_shakespeare_predicts_the_next_character() -> None:
    task = load("shakespeare")
    np.testing.assert_array_equal(task.targets[:, :-1], task.inputs[:, 1:])
    np.testing.assert_array_equal(task.targets[:-1, -1], task.inputs[1:, 0])


def test_wikitext_predicts_the_next_word() -> None:
    task = load("wikitext")
    np.testing.assert_array_equal(task.targets[:, :-1], task.inputs[:, 1:])
    np.testing.assert_array_equal(task.targets[:-1, -1], task.inputs[1:, 0])
    # The words with a number of their own are most of the text, those of the other part included.
    for part in (task.inputs, task.valid_inputs):
        assert 0.6 < (part < WORDS).mean() < 0.95


def test_wikitext_numbers_the_most_frequent_words_of_the_training_part(tmp_path: Path) -> None:
    """Line ends are a word; those that are rare in the training part share a number."""
    known = [f"w{i:04}" for i in range(WORDS - 1)]
    train = " ".join([*known, *known, "rare", "\n", "\n", *known])
    valid = " ".join(["unseen", known[5], "\n", "rare", *known[:CONTEXT]])
    for name, text in (("valid", train), ("test", valid)):
        (tmp_path / f"{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
    task = load_task("wikitext", tmp_path)
    assert task.outputs == WORDS + 1
    # "<eos>" sorts before the others.
    expected = [WORDS, 6, 0, WORDS, *range(1, CONTEXT - 3)]
    assert task.valid_inputs.tolist() == [expected]
    assert task.valid_targets[0].tolist() == [*expected[1:], CONTEXT - 3]
    flat = task.inputs.ravel()
    assert flat[: WORDS - 1].tolist() == list(range(1, WORDS))
    assert flat[2 * (WORDS - 1) :][:4].tolist() == [WORDS, 0, 0, 1]


def test_diabetes_parts_share_no_patient() -> None:
    pytest.importorskip("sklearn")
    task = load("diabetes")
    rows = {row.tobytes() for row in task.inputs}
    assert not any(row.tobytes() in rows for row in task.valid_inputs)
    # There is something to learn: a least-squares fit explains a good part of the other patients.
    x = np.hstack([task.inputs, np.ones((len(task.inputs), 1), np.float32)])
    weights = np.linalg.lstsq(x, task.targets, rcond=None)[0]
    left = task.valid_targets - task.valid_inputs @ weights[:-1] - weights[-1]
    assert (left**2).mean() < 0.8 * task.valid_targets.var()


def test_ett_predicts_what_follows_in_time() -> None:
    task = load("ett")
    steps = task.targets.reshape(-1, HORIZON, 7)
    np.testing.assert_array_equal(steps[:-1, 0], task.inputs[1:, -1])
    np.testing.assert_array_equal(steps[:-HORIZON, -1], task.inputs[HORIZON:, -1])
    # The history of the first validation window is the end of the training part.
    np.testing.assert_array_equal(task.valid_inputs[0, -HORIZON:], steps[-1])


def test_housing_fills_gaps_with_the_median_of_the_training_part(tmp_path: Path) -> None:
    rows = ["longitude,total_bedrooms,median_house_value,ocean_proximity"]
    rows += [
        f"{i},{'' if i % 4 == 0 else i},{1000 + i},{'INLAND' if i % 2 else 'ISLAND'}"
        for i in range(40)
    ]
    (tmp_path / "housing.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    task = load_task("housing", tmp_path)
    assert (task.inputs.shape, task.valid_inputs.shape) == ((32, 4), (8, 4))
    inputs = np.vstack([task.inputs, task.valid_inputs])
    # Undo the scaling by the two columns that hold the same number wherever there is no gap.
    position = inputs[:, 0] * np.float32(1)
    order = np.argsort(position)
    gaps = order[::4]
    filled = inputs[gaps, 1]
    assert np.ptp(filled) < 1e-6
    known = np.setdiff1d(np.arange(40), gaps)
    known_train = known[known < 32]
    assert filled[0] == pytest.approx(np.median(inputs[known_train, 1]), abs=1e-5)
    assert {len(np.unique(inputs[:, j])) for j in (2, 3)} == {2}
    assert task.targets.mean() == pytest.approx(0, abs=1e-5)


def test_unknown_task_is_named_with_what_is_allowed() -> None:
    with pytest.raises(
        ValueError, match="invalid task: 'imagenet'; allowed: digits, diabetes, mnist"
    ):
        load_task("imagenet")


@pytest.mark.parametrize("name", [name for name in SIZES if name not in BUNDLED])
def test_missing_data_says_which_files_and_where_they_come_from(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NULLPORT_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "pooch", None)  # which would name the user's cache
    with pytest.raises(MissingData, match="no data folder is given"):
        load_task(name)
    monkeypatch.undo()
    monkeypatch.setenv("NULLPORT_DATA", str(tmp_path))
    with pytest.raises(MissingData) as caught:
        load_task(name)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert ".gz" in message or ".xz" in message
    assert "--data DIR" in message
    assert "https://" in message
    assert "nullport data fetch" in message
    assert "\n" not in message


def test_only_the_missing_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    (folder / "train_first10000_images.npy.xz").touch()
    with pytest.raises(MissingData) as caught:
        load_task("cifar10", tmp_path)
    assert "train_first10000_images" not in str(caught.value)
    assert "train_first10000_labels.npy.xz" in str(caught.value)


def test_readers_read_what_the_formats_say(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    idx = bytes([0, 0, 8, 3]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx))
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), array)
    buffer = io.BytesIO()
    np.save(buffer, array)
    (tmp_path / "a.xz").write_bytes(lzma.compress(buffer.getvalue()))
    np.testing.assert_array_equal(read_npy(tmp_path / "a.xz"), array)
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"x,y\n1,\n2,b c\n"))
    assert read_csv(tmp_path / "b.gz") == {"x": ["1", "2"], "y": ["", "b c"]}


def test_a_task_refuses_parts_that_do_not_fit() -> None:
    x, y = np.zeros((4, 2)), np.zeros(3)
    with pytest.raises(ValueError, match="4 training inputs for 3 targets"):
        Task("toy", "regression", 1, x, y, x, y)
    with pytest.raises(ValueError, match="0 validation inputs"):
        Task("toy", "regression", 1, x, x, x[:0], x[:0])
