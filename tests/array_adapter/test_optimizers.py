"""The optimizers against torch's, and that they change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_adapter.layer_reference import PLACES, leaves, place, tree_map
from helpers.installed import installed

from nullport_arrays import SGD, Adagrad, Adam, apply

RULES: dict[str, tuple[Any, Any]] = {
    "sgd": (SGD(0.1), lambda t, p: t.optim.SGD(p, lr=0.1)),
    "momentum": (SGD(0.1, momentum=0.9), lambda t, p: t.optim.SGD(p, lr=0.1, momentum=0.9)),
    "adagrad": (Adagrad(0.1), lambda t, p: t.optim.Adagrad(p, lr=0.1)),
    "adam": (Adam(0.01), lambda t, p: t.optim.Adam(p, lr=0.01)),
    "adamw": (Adam(0.01, decay=0.1), lambda t, p: t.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
}
RNG = np.random.default_rng(0)
PARAMS = {"0": {"weight": RNG.standard_normal((3, 4))}, "bias": RNG.standard_normal(3)}
GRADIENTS = [tree_map(lambda a: RNG.standard_normal(a.shape), PARAMS) for _ in range(4)]


def train(rule: Any, params: Any, gradients: Any) -> Any:
    state = rule.init(params)
    for g in gradients:
        steps, state = rule.update(g, state, params)
        params = apply(params, steps)
    return params


@pytest.mark.skipif(not installed("torch"), reason="torch is the reference")
@pytest.mark.parametrize(("rule", "theirs"), RULES.values(), ids=RULES)
def test_is_torchs(rule: Any, theirs: Any) -> None:
    import torch

    tensors = [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in leaves(PARAMS)]
    optimizer = theirs(torch, tensors)
    for g in GRADIENTS:
        for tensor, a in zip(tensors, leaves(g), strict=True):
            tensor.grad = torch.from_numpy(a.copy())
        optimizer.step()
    found = leaves(train(rule, PARAMS, GRADIENTS))
    for a, tensor in zip(found, tensors, strict=True):
        assert np.allclose(a, tensor.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [p for p in PLACES if p != "jax-jit"])
@pytest.mark.parametrize("rule", [rule for rule, _ in RULES.values()], ids=RULES)
def test_namespaces_agree_and_float32_stays(rule: Any, name: str) -> None:
    expected = train(rule, PARAMS, GRADIENTS)
    with place(name) as here:
        found = train(rule, here.put(PARAMS), [here.put(g) for g in GRADIENTS])
        found = here.back(found)
        single = train(rule, here.put(PARAMS, "float32"), [here.put(GRADIENTS[0], "float32")])
        single = here.back(single)
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        assert np.allclose(a, b, rtol=1e-12, atol=1e-12)
    assert all(a.dtype == np.float32 for a in leaves(single))


@pytest.mark.parametrize("rule", [rule for rule, _ in RULES.values()], ids=RULES)
def test_changes_nothing(rule: Any) -> None:
    state = rule.init(PARAMS)
    _, state = rule.update(GRADIENTS[0], state, PARAMS)
    trees = (PARAMS, GRADIENTS[1], state.first, state.second)
    held = [a.copy() for tree in trees for a in leaves(tree)]
    first = rule.update(GRADIENTS[1], state, PARAMS)
    again = rule.update(GRADIENTS[1], state, PARAMS)
    after = [a for tree in trees for a in leaves(tree)]
    assert all(np.array_equal(a, b) for a, b in zip(held, after, strict=True))
    for a, b in zip(leaves(first[0]), leaves(again[0]), strict=True):
        assert np.array_equal(a, b)
