"""Diagnosing a network: scales measured, the state, the advice, and the command."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullport.lab.backends import load_backend
from nullport.lab.cli import diagnose as command
from nullport.lab.cli import main
from nullport.lab.diagnose import Diagnosis, Scale, advice, diagnose, verdict
from nullport.lab.diagnose.scales import unhealthy
from nullport_arrays import from_network
from nullport_arrays._optimizers import SGD
from nullport_arrays.layers import CrossEntropy, Dense, ReLU, Sequential

SIZES = [20, *[64] * 10, 5]


def network(gain: float, *, seed: int = 0, **given: Any) -> Any:
    """Return a graph of a ReLU network of depth 10, its weights of scale ``gain / sqrt(in)``."""
    rng = np.random.default_rng(seed)
    layers: list[Any] = []
    for a, b in itertools.pairwise(SIZES):
        layers += [Dense(a, b), ReLU()]
    model = Sequential(*layers[:-1])
    params = model.init(rng)
    for layer in (layer for layer in params.values() if layer):
        shape = layer["weight"].shape
        layer["weight"] = (gain / shape[1] ** 0.5 * rng.normal(size=shape)).astype(np.float32)
        layer["bias"] = np.zeros_like(layer["bias"])
    batch = rng.normal(size=(32, 20)).astype(np.float32), rng.integers(0, 5, 32)
    return from_network(model, CrossEntropy(), params, batch, **given)


def test_a_network_of_small_weights_is_stuck() -> None:
    found = diagnose(network(0.58))
    assert found.state == "stuck"
    assert found.factor > 50
    assert [one.name for one in found.maps] == sorted(
        (one.name for one in found.maps), key=lambda name: int(name.split(".")[0])
    )
    assert len(unhealthy(found)) >= 9
    assert verdict(found).startswith("stuck: gradients vanish on their way down, by a factor of ")
    said = advice(found)
    assert "Before training, another initialisation" in said
    assert f"Too small: {unhealthy(found)[0].name} × 2." in said
    assert "'amplify'" in said


def test_hes_scale_trains() -> None:
    found = diagnose(network(2**0.5))
    assert found.state == "training"
    assert found.rate is None
    assert "only the optimizer tells" in advice(found)
    assert all(one.weight == pytest.approx(2**0.5, rel=0.1) for one in found.maps)


def test_large_weights_explode() -> None:
    found = diagnose(network(4.0))
    assert found.state == "exploding"
    assert found.factor > 100
    assert " ÷ 2." in advice(found)
    assert "no teleport does" in advice(found)


def test_scales_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    model, batch = Dense(6, 4), (rng.normal(size=(8, 6)), rng.integers(0, 4, 8))
    params = {k: v.astype(np.float64) for k, v in model.init(rng).items()}
    (one,) = diagnose(from_network(model, CrossEntropy(), params, batch)).maps
    weight, x = params["weight"], batch[0]
    logits = x @ weight.T + params["bias"]
    odds = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    cotangent = (odds - np.eye(4)[batch[1]]) / 8
    assert one.inputs == pytest.approx(np.sqrt(np.mean(x**2)))
    assert one.outputs == pytest.approx(np.sqrt(np.mean((x @ weight.T) ** 2)))
    assert one.cotangent == pytest.approx(np.linalg.norm(cotangent))
    assert one.weight == pytest.approx(np.sqrt(np.mean(weight**2) * 6))
    assert one.shrinkage == one.lacks == 1


def test_shrinkage_multiplies_to_the_ratio_of_cotangents() -> None:
    maps = diagnose(network(0.9)).maps
    product = math.prod(one.shrinkage for one in maps)
    assert product == pytest.approx(maps[-1].cotangent / maps[0].cotangent, rel=1e-4)


@pytest.mark.parametrize(
    ("lr", "rate", "words"),
    [
        (1e-6, 100.0, "100 times as long"),
        (1e6, 0.0, "A smaller rate"),
    ],
)
def test_a_rate_is_named_where_the_optimizer_is_known(lr: float, rate: float, words: str) -> None:
    optimizer = SGD(lr)
    given = network(2**0.5)
    graph = network(2**0.5, optimizer=optimizer, state=optimizer.init(given.params))
    before = [w.copy() for w in graph.weights()]
    found = diagnose(graph)
    assert found.rate == rate
    assert words in advice(found)
    for a, b in zip(before, graph.weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_words_for_every_case() -> None:
    one = Scale("a.weight", "dense", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    trains = Diagnosis(1.0, "training", 1.0, (one,), rate=1.0)
    assert advice(trains).startswith("Nothing: ")
    dead = Diagnosis(1.0, "stuck", math.inf, (one,))
    assert "dead or saturated" in advice(dead)
    assert verdict(dead).endswith("factor of inf")
    maps = tuple(replace(one, name=f"{i}", lacks=2.0) for i in range(14))
    assert "11 × 2 and 2 more." in advice(replace(dead, maps=maps))
    assert command.as_dict(dead)["factor"] is None
    json.dumps(command.as_dict(dead), allow_nan=False)


def test_a_loss_that_is_not_finite_is_named() -> None:
    graph = network(1e30)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"returned loss (nan|inf)"):
        diagnose(graph)


# The command -------------------------------------------------------------------------------------

MODEL = """
import torch
from torch import nn

def deep(scale):
    torch.manual_seed(0)
    layers = []
    for _ in range(8):
        layers += [nn.Linear(32, 32), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(32, 3))
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=scale / 32**0.5)
    x, y = torch.randn(64, 32), torch.randint(0, 3, (64,))
    return model, lambda: nn.functional.cross_entropy(model(x), y)

def stuck():
    return deep(0.6)

def trains():
    model, closure = deep(2**0.5)
    return model, closure, torch.optim.Adam(model.parameters(), 1e-5)

def dead():
    model, closure = deep(0.6)
    nn.init.zeros_(model[8].weight)
    nn.init.constant_(model[8].bias, -1.0)
    return model, closure

def images():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3),
    )
    x, y = torch.randn(8, 4, 8, 8), torch.randint(0, 3, (8,))
    return model, lambda: nn.functional.cross_entropy(model(x), y)

def wrong():
    model, closure = stuck()
    return model, closure, "sgd"

def infinite():
    model, closure = stuck()
    return model, lambda: closure() * float("inf")

def number():
    return 3
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    for package in ("rich", "matplotlib", "torch"):
        pytest.importorskip(package)
    (tmp_path / "model.py").write_text(MODEL)
    return str(tmp_path / "model.py")


def record(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert main(["diagnose", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_diagnose_prints_a_line_per_map_and_draws(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    picture = tmp_path / "a.png"
    assert main(["diagnose", f"{model}:stuck", "--picture", str(picture)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(f"{i}.weight" in out for i in range(0, 17, 2))
    for words in ("shrinks by", "weight scale", "stuck: gradients vanish", "'amplify'"):
        assert words in out
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_diagnose_prints_json(capsys: pytest.CaptureFixture[str], model: str) -> None:
    stuck = record(capsys, f"{model}:stuck")
    assert set(stuck) == {"loss", "state", "factor", "maps", "rate", "verdict", "advice"}
    assert (stuck["state"], stuck["rate"], len(stuck["maps"])) == ("stuck", None, 9)
    trains = record(capsys, f"{model}:trains")
    assert trains["state"] == "training"
    assert trains["rate"] >= 3
    assert "A larger rate" in trains["advice"]
    dead = record(capsys, f"{model}:dead")
    assert (dead["state"], dead["factor"]) == ("stuck", None)
    images = record(capsys, f"{model}:images")["maps"]
    assert [one["name"] for one in images] == ["0.weight", "3.weight", "6.weight"]
    assert images[0]["weight"] == pytest.approx(1 / 3**0.5, rel=0.2)
    assert images[0]["outputs"] == pytest.approx(1 / 3**0.5, rel=0.3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "returned int, expected (model, closure)"),
        ("wrong", "returned (Sequential, function, str), expected (model, closure)"),
        ("infinite", "loss inf; a diagnosis needs a finite loss"),
        ("nope", "no such function in model.py: 'nope'"),
        ("stuck --picture a.jpg", "invalid picture: 'a.jpg'; allowed: FILE.png in an existing"),
        ("stuck --picture none/a.png", "invalid picture: 'none/a.png' (no folder "),
        ("stuck --backend tf", "unknown backend 'tf'; available: "),
    ],
)
def test_diagnose_says_what_it_expects(
    capsys: pytest.CaptureFixture[str], model: str, name: str, message: str
) -> None:
    assert main(["diagnose", *f"{model}:{name}".split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_backend_without_graphs_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = replace(load_backend("numpy"), graph=None)
    monkeypatch.setattr(command, "backend_or_error", lambda _: bare)
    assert main(["diagnose", "a.py:make"]) == 2
    assert "invalid backend: 'numpy'; allowed: one that makes graphs" in capsys.readouterr().err


JAX_MODEL = """
import jax, jax.numpy as jnp

def make():
    keys = jax.random.split(jax.random.key(0), 8)
    params = [0.6 / 32**0.5 * jax.random.normal(key, (32, 32)) for key in keys]
    x = jax.random.normal(jax.random.key(1), (16, 32))

    def loss(params, x):
        for w in params:
            x = jax.nn.relu(x @ w)
        return jnp.mean((x - 1) ** 2)

    return loss, params, x
"""

NUMPY_MODEL = """
import numpy as np
from nullport_arrays import from_network
from nullport_arrays.layers import Dense, ReLU, Sequential, SquaredError

def make():
    rng = np.random.default_rng(0)
    layers = [layer for _ in range(6) for layer in (Dense(16, 16), ReLU())]
    model = Sequential(*layers, Dense(16, 2))
    x, y = rng.normal(size=(8, 16)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
    return from_network(model, SquaredError(), model.init(rng), (x, y))
"""


@pytest.mark.parametrize(
    ("backend", "source", "count"), [("jax", JAX_MODEL, 8), ("numpy", NUMPY_MODEL, 7)]
)
def test_diagnose_with_other_frameworks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, backend: str, source: str, count: int
) -> None:
    pytest.importorskip(backend)
    (tmp_path / "net.py").write_text(source)
    found = record(capsys, f"{tmp_path}/net.py:make", "--backend", backend)
    assert found["state"] == "stuck"
    assert len(found["maps"]) == count
