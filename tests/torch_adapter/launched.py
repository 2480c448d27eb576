"""Other people's training loops on several processes; run by ``test_integrations_distributed.py``.

    accelerate launch --multi_gpu --num_processes 2 tests/torch_adapter/launched.py FOLDER

The launcher starts the processes as ``torchrun`` does. Each trains every kind for 50 steps, and
once more from the checkpoint of step 25, and writes what it found to ``FOLDER``.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers.ranks import PATIENCE, spread
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from nullport import TeleportConfig

STEPS, HALF, EVERY, ROWS = 50, 25, 5, 4
CONFIG = TeleportConfig(max_loss_change=0.5, radius=0.05, objective="grad_norm", max_gain=1e9)
OPTIONS: dict[str, Any] = {"every": EVERY, "config": CONFIG}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4)
    )


def data() -> TensorDataset:
    draw = torch.Generator().manual_seed(1)
    count = ROWS * STEPS * dist.get_world_size()
    x = torch.randn(count, 6, generator=draw)
    return TensorDataset(x, (x @ torch.randn(6, 4, generator=draw)).argmax(1))


def flat(model: nn.Module) -> Tensor:
    """Return all weights, whole."""
    parts: Any = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return torch.cat([p.detach().reshape(-1) for p in parts])


class Rows(torch.utils.data.Dataset[Any]):
    def __init__(self) -> None:
        self.rows = data()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = self.rows[index]
        return {"x": x, "labels": y}


class Labelled(nn.Module):
    """A network that returns its loss, as Hugging Face's do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.net(x)
        return {"loss": cross_entropy(out, labels), "logits": out}


def lightning(folder: Path, resume: bool) -> tuple[nn.Module, Any]:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from nullport_torch.integrations import LightningCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss = cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss, sync_dist=True)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.02, momentum=0.9)

    half = Path(folder, "lightning", "half-0.ckpt")
    callback = LightningCallback(**OPTIONS)
    name = {"filename": "half-{epoch}", "auto_insert_metric_name": False}
    keeper = ModelCheckpoint(half.parent, save_top_k=-1, **name)
    trainer = pl.Trainer(
        max_epochs=STEPS // HALF,
        limit_train_batches=HALF,
        callbacks=[callback] if resume else [callback, keeper],
        default_root_dir=folder,
        accelerator="cpu",
        strategy="ddp",
        devices=dist.get_world_size(),
        logger=False,
        enable_checkpointing=not resume,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=0.5,
    )
    module = Module()
    trainer.fit(module, DataLoader(data(), batch_size=ROWS), ckpt_path=half if resume else None)
    return module, callback.teleporter


def hugging_face(folder: Path, resume: bool) -> tuple[nn.Module, Any]:
    from transformers import TrainingArguments

    from nullport_torch.integrations import TeleportingTrainer

    home = Path(folder, "again" if resume else "whole")
    settings = TrainingArguments(
        output_dir=str(home),
        max_steps=STEPS,
        per_device_train_batch_size=ROWS // 2,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        save_steps=HALF,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = TeleportingTrainer(Labelled(), settings, train_dataset=Rows(), teleport=OPTIONS)
    checkpoint = Path(folder, "whole", f"checkpoint-{HALF}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if resume else None)
    return trainer.model, trainer.teleporter


def accelerate(folder: Path, resume: bool, plugin: Any = None) -> tuple[nn.Module, Any]:
    from accelerate import Accelerator

    from nullport_torch.integrations import AcceleratedTeleporter

    accelerator = Accelerator(cpu=True)
    if plugin is not None:
        _sharding(accelerator, plugin)
    net = network()
    made = torch.optim.AdamW(net.parameters(), 1e-3)
    model, optimizer, loader = accelerator.prepare(net, made, DataLoader(data(), ROWS))
    teleporter = AcceleratedTeleporter(accelerator, model, optimizer, clip=0.5, **OPTIONS)
    state = str(Path(folder, f"accelerate-{plugin is not None}"))
    if resume:
        accelerator.load_state(state)
        loader = accelerator.skip_first_batches(loader, HALF)

    def loss_fn(batch: Any) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    for step, batch in enumerate(loader, HALF if resume else 0):
        if step == HALF and not resume:
            accelerator.save_state(state)
        with accelerator.accumulate(model):
            teleporter.maybe_step(loss_fn, batch)
            accelerator.backward(loss_fn(batch))
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return model, teleporter


def fsdp2(folder: Path, resume: bool) -> tuple[nn.Module, Any]:
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=1
    )
    return accelerate(folder, resume, plugin)


def _sharding(accelerator: Any, plugin: Any) -> None:
    """Have weights sharded: without a GPU, accelerate replicates them whatever it is told."""
    from accelerate import DistributedType, PartialState

    for state in (PartialState._shared_state, vars(accelerator.state)):
        state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


KINDS: dict[str, Callable[[Path, bool], tuple[nn.Module, Any]]] = {
    "lightning": lightning,
    "hugging face": hugging_face,
    "accelerate": accelerate,
    "fsdp2": fsdp2,  # last, for it changes the state that accelerate shares
}


def facts(kind: str, folder: Path) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (model, whole), (other, resumed) = (KINDS[kind](folder, again) for again in (False, True))
    return {
        "apart": spread(flat(model)),
        "sharded": any(isinstance(p, DTensor) for p in model.parameters()),
        "resumed": float((flat(model) - flat(other)).abs().max()),
        "steps": [report.step for report in whole.history],
        "resumed steps": [report.step for report in resumed.history],
        "accepted": sum(bool(report.accepted) for report in whole.history),
        "losses": [float(report.loss_before) for report in whole.history],
        "said": [str(w.message) for w in told if "teleport" in str(w.message)],
    }


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=PATIENCE)
    found = {kind: facts(kind, folder) for kind in KINDS}
    Path(folder, f"found-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
