"""Teleports inside other people's training loops: each trains, is interrupted, and resumes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.installed import installed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from nullport import TeleportConfig
from nullport_torch import Teleporter, integrations
from nullport_torch.integrations import _parts

THEIRS = pytest.mark.filterwarnings("default")  # what these libraries warn of themselves
LIGHTNING = pytest.mark.skipif(not installed("lightning"), reason="lightning is not installed")
TRANSFORMERS = pytest.mark.skipif(
    not (installed("transformers") and installed("accelerate")),
    reason="transformers or accelerate is not installed",
)
ACCELERATE = pytest.mark.skipif(not installed("accelerate"), reason="accelerate is not installed")
SKORCH = pytest.mark.skipif(not installed("skorch"), reason="skorch is not installed")
IGNITE = pytest.mark.skipif(not installed("ignite"), reason="ignite is not installed")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)
    )


def data(count: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, 8, generator=generator),
        torch.randint(3, (count,), generator=generator),
    )


def test_names_are_imported_when_they_are_asked_for() -> None:
    assert set(integrations.__all__) == set(integrations._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        integrations.Nothing  # noqa: B018


def _lightning_parts(manual: bool = False) -> tuple[Any, Any]:
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader, TensorDataset
    from torchmetrics.classification import MulticlassAccuracy

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.accuracy = network(), MulticlassAccuracy(3)
            self.automatic_optimization = not manual
            self.counted: list[float] = []

        def training_step(self, batch: Any, index: int) -> Any:
            x, y = batch
            out = self.net(x)
            loss = cross_entropy(out, y)
            self.accuracy(out, y)
            self.log("loss", loss)
            self.log("accuracy", self.accuracy)
            if manual:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                return None
            return {"loss": loss}

        def on_train_epoch_end(self) -> None:
            self.counted.append(float(self.accuracy._update_count))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    return Module(), DataLoader(TensorDataset(*data()), batch_size=6)


def _fit(
    folder: Path, module: Any, loader: Any, callbacks: list[Any], epochs: int, **options: Any
) -> Any:
    import lightning.pytorch as pl

    resume = options.pop("ckpt_path", None)
    trainer = pl.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **options,
    )
    trainer.fit(module, loader, ckpt_path=resume)
    return trainer


@LIGHTNING
@THEIRS
@pytest.mark.parametrize("clip", [None, 0.1])
def test_lightning_resumes_bit_for_bit(clip: float | None, tmp_path: Path) -> None:
    options = {"gradient_clip_val": clip}
    whole, loader = _lightning_parts()
    callback = integrations.LightningCallback(every=3)
    _fit(tmp_path / "whole", whole, loader, [callback], 2, **options)
    assert len(callback.teleporter.history) == 5
    first, loader = _lightning_parts()
    one = integrations.LightningCallback(every=3)
    trainer = _fit(tmp_path / "first", first, loader, [one], 1, **options)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second, loader = _lightning_parts()
    two = integrations.LightningCallback(every=3)
    _fit(tmp_path / "second", second, loader, [two], 2, ckpt_path=tmp_path / "half.ckpt", **options)
    reports = [*one.teleporter.history, *two.teleporter.history]
    assert [r.step for r in reports] == [r.step for r in callback.teleporter.history]
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@LIGHTNING
@THEIRS
def test_lightning_clips_and_its_metrics_count_what_was_trained(tmp_path: Path) -> None:
    """What is foreseen is the trainer's own step, which is probed in training."""
    module, loader = _lightning_parts()
    callback = integrations.LightningCallback(every=2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _fit(tmp_path, module, loader, [callback], 1, gradient_clip_val=0.1)
    assert not [w for w in told if "no teleport" in str(w.message)]
    assert len(callback.teleporter.history) == 3
    assert module.counted in ([8.0], [0.0])
    assert callback.teleporter._optimizers.clip is not None


@LIGHTNING
@THEIRS
def test_lightning_accumulates(tmp_path: Path) -> None:
    module, loader = _lightning_parts()
    callback = integrations.LightningCallback(every=2)
    _fit(tmp_path, module, loader, [callback], 2, accumulate_grad_batches=2)
    assert callback.teleporter.state_dict()["policy"]["step"] == 8
    assert len(callback.teleporter.history) == 3


@LIGHTNING
@THEIRS
def test_lightning_with_manual_optimisation(tmp_path: Path) -> None:
    module, loader = _lightning_parts(manual=True)
    callback = integrations.LightningCallback(every=3)
    with pytest.warns(UserWarning, match="no teleport: with manual optimisation"):
        _fit(tmp_path, module, loader, [callback], 1)
    module, loader = _lightning_parts(manual=True)
    callback = integrations.LightningCallback(
        lambda m, batch: cross_entropy(m.net(batch[0]), batch[1]), every=3
    )
    _fit(tmp_path, module, loader, [callback], 1)
    assert len(callback.teleporter.history) == 2


def _hugging_face(folder: Path, steps: int, **arguments: Any) -> Any:
    from torch.utils.data import Dataset
    from transformers import TrainingArguments

    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return 48

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return {"x": x[index], "labels": y[index]}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            out = self.net(x)
            return {"loss": cross_entropy(out, labels), "logits": out}

    x, y = data()
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        save_strategy="steps",
        logging_steps=5,
        disable_tqdm=True,
        **{"save_steps": 6, "save_safetensors": False, **arguments}
        if "save_safetensors" in TrainingArguments.__dataclass_fields__
        else {"save_steps": 6, **arguments},
    )
    return integrations.TeleportingTrainer(
        Model(), settings, train_dataset=Rows(), teleport={"every": 3}
    )


@TRANSFORMERS
@THEIRS
@pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}])
def test_hugging_face_resumes(arguments: dict[str, Any], tmp_path: Path) -> None:
    whole = _hugging_face(tmp_path / "whole", 12, **arguments)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        whole.train()
    assert not [w for w in told if "no teleport" in str(w.message)]
    assert [r.step for r in whole.teleporter.history] == [3, 6, 9]
    logged = [entry for entry in whole.state.log_history if "nullport/accepted" in entry]
    assert len(logged) == 3
    second = _hugging_face(tmp_path / "second", 12, **arguments)
    second.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert [r.step for r in second.teleporter.history] == [6, 9]
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@TRANSFORMERS
@THEIRS
def test_the_loss_is_that_of_the_whole_step(tmp_path: Path) -> None:
    """Over all micro-batches, as training computes it."""
    trainer = _hugging_face(tmp_path, 6, gradient_accumulation_steps=3)
    trainer.train()
    batches = trainer.teleporter._recent[-1].batch[0]
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 4]
    assert len(trainer.teleporter.history) == 1
    assert 0 < trainer.teleporter.history[0].loss_before < 5


@ACCELERATE
@THEIRS
@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate_resumes(accumulate: int, tmp_path: Path) -> None:
    from accelerate import Accelerator

    x, y = data()

    def run(steps: range, load: bool) -> tuple[nn.Module, Any]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        net = network()
        model, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), 1e-2))
        teleporter = integrations.AcceleratedTeleporter(accelerator, model, optimizer, every=3)
        if load:
            accelerator.load_state(str(tmp_path / "state"))
        for step in steps:
            batch = x[4 * step : 4 * step + 4], y[4 * step : 4 * step + 4]
            with accelerator.accumulate(model):
                loss_fn = lambda b: cross_entropy(model(b[0]), b[1])  # noqa: E731
                teleporter.maybe_step(loss_fn, batch)
                accelerator.backward(loss_fn(batch))
                optimizer.step()
                optimizer.zero_grad()
            if step == 5:
                accelerator.save_state(str(tmp_path / "state"))
        return net, teleporter

    whole, one = run(range(12), load=False)
    assert len(one.history) == {1: 3, 2: 1}[accumulate]
    resumed, _ = run(range(6, 12), load=True)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


GENTLE = TeleportConfig(objective="grad_norm", radius=0.05, max_loss_change=0.5, max_gain=1e9)


@LIGHTNING
@THEIRS
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_fabric(precision: Any, wrapped: bool, tmp_path: Path) -> None:
    """What ``Fabric.setup`` returns trains with teleports, and checks gradients as before."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    net, (x, y) = network(), data(96)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), 0.05))
    target = model if wrapped else net
    teleporter = Teleporter(target, optimizer, every=3, config=GENTLE)

    def loss_fn(batch: Any) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for batch in zip(x.split(8), y.split(8), strict=True):
            teleporter.maybe_step(loss_fn, batch)
            optimizer.zero_grad()
            fabric.backward(loss_fn(batch))
            optimizer.step()
    assert not [w for w in told if "teleport" in str(w.message)]
    assert [r.step for r in teleporter.history] == [3, 6, 9]
    assert any(r.accepted for r in teleporter.history)
    assert [row.name for row in teleporter.history[0].layers] == [
        "0.weight",
        "2.weight",
        "4.weight",
    ]
    parts = {"model": model, "optimizer": optimizer, "teleporter": teleporter}
    fabric.save(tmp_path / "state.ckpt", parts)
    fabric.load(tmp_path / "state.ckpt", parts)
    if precision == "bf16-mixed":
        with pytest.raises(RuntimeError, match=r"fabric\.backward"):
            loss_fn((x[:4], y[:4])).backward()


@TRANSFORMERS
@THEIRS
def test_peft(tmp_path: Path) -> None:
    """Weights of low rank move, the frozen ones that they are added to do not."""
    peft = pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16}
    model = peft.get_peft_model(
        LlamaForCausalLM(LlamaConfig(**sizes, **heads)),
        peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"),
    )
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    words = torch.randint(32, (48, 12))
    settings = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=8,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = [{"input_ids": row, "labels": row} for row in words]
    options = {"every": 3, "config": GENTLE}
    trainer = integrations.TeleportingTrainer(model, settings, train_dataset=rows, teleport=options)
    trainer.train()
    first, second = trainer.teleporter.history
    assert first.accepted or second.accepted
    moved = {row.name for row in (*first.layers, *second.layers) if row.moved}
    assert moved
    assert all("lora_" in name for name in moved)
    named = dict(model.named_parameters())
    assert all(torch.equal(named[name], p) for name, p in frozen.items())


@ACCELERATE
@THEIRS
def test_accelerate_saves_several_teleporters(tmp_path: Path) -> None:
    from accelerate import Accelerator

    def made() -> tuple[Any, list[Any]]:
        accelerator = Accelerator(cpu=True)
        nets = [network(), network()]
        pairs = [(net, torch.optim.SGD(net.parameters(), 0.05)) for net in nets]
        prepared = [accelerator.prepare(*pair) for pair in pairs]
        return accelerator, [integrations.AcceleratedTeleporter(accelerator, *p) for p in prepared]

    accelerator, teleporters = made()
    for count, teleporter in enumerate(teleporters, 1):
        for batch in zip(*(t.split(4) for t in data(4 * count)), strict=True):
            net = teleporter._model
            teleporter.maybe_step(lambda b, net=net: cross_entropy(net(b[0]), b[1]), batch)
    accelerator.save_state(str(tmp_path))
    accelerator, again = made()
    accelerator.load_state(str(tmp_path))
    assert [t.state_dict()["policy"]["step"] for t in again] == [1, 2]
    for path in tmp_path.glob("teleporter*"):
        path.unlink()
    with pytest.warns(UserWarning, match="its schedule starts anew") as told:
        accelerator.load_state(str(tmp_path))
    assert len(told) == 2


@pytest.mark.parametrize("missing", [False, True])
def test_another_number_of_processes_waits_for_new_batches(
    missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [{"policy": {"step": 7.0}, "recent": [torch.tensor(rank)]} for rank in range(3)]
    for rank, state in enumerate(states):
        monkeypatch.setattr(_parts, "_place", lambda rank=rank: (rank, 3))
        if not (missing and rank == 2):
            _parts.save(state, tmp_path)
    monkeypatch.setattr(_parts, "_everywhere", lambda flag: flag and not missing)
    assert _parts.own(states) == states[2]
    if not missing:
        assert _parts.load(tmp_path, "cpu:0") == states[2]
    monkeypatch.setattr(_parts, "_place", lambda: (1, 2))
    monkeypatch.setattr(_parts, "_everywhere", bool)
    assert _parts.own(states) == {"policy": {"step": 7.0}, "recent": []}
    assert _parts.load(tmp_path, "cpu") == {"policy": {"step": 7.0}, "recent": []}
    assert _parts.load(tmp_path / "elsewhere", "cpu") is None


@SKORCH
@THEIRS
def test_skorch_recipe() -> None:
    """As in docs/training-loop.md."""
    from skorch import NeuralNet

    class TeleportingNet(NeuralNet):
        def train_step_single(self, batch: Any, **fit_params: Any) -> Any:
            if getattr(self, "teleporter_", None) is None:
                self.teleporter_ = Teleporter(self.module_, self.optimizer_, every=3)
            self.teleporter_.maybe_step(self._loss_on, batch)
            return super().train_step_single(batch, **fit_params)

        def _loss_on(self, batch: Any) -> Tensor:
            x, y = batch
            return self.get_loss(self.infer(x), y, X=x, training=True)

    x, y = data()
    net = TeleportingNet(
        network(),
        criterion=nn.CrossEntropyLoss,
        lr=0.05,
        max_epochs=1,
        batch_size=6,
        train_split=None,
        verbose=0,
    )
    net.fit(x.numpy(), y.numpy())
    assert len(net.teleporter_.history) == 2


@IGNITE
@THEIRS
def test_ignite_recipe() -> None:
    """As in docs/training-loop.md."""
    from ignite.engine import Engine, Events

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    teleporter = Teleporter(model, optimizer, every=3)

    def loss_fn(batch: Any) -> Tensor:
        return mse_loss(model(batch[0]), batch[1])

    def update(engine: Any, batch: Any) -> float:
        optimizer.zero_grad()
        loss = loss_fn(batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    trainer = Engine(update)

    @trainer.on(Events.ITERATION_STARTED)
    def teleport(engine: Any) -> None:
        teleporter.maybe_step(loss_fn, engine.state.batch)

    trainer.run([(torch.randn(4, 8), torch.randn(4, 3)) for _ in range(8)])
    assert len(teleporter.history) == 2
