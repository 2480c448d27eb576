"""What is compared: one frozen record, checked when it is made, that pickles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from nullport import Rule, TeleportConfig
from nullport.lab.named import known_as

ModelName = Literal["mlp", "cnn", "vgg", "autoencoder", "transformer", "lstm", "pinn"]
OptimizerName = Literal["sgd", "momentum", "adagrad", "adam", "adamw"]
ScheduleName = Literal["constant", "cosine"]
InitName = Literal["default", "he", "xavier", "orthogonal", "lsuv"]
ActivationName = Literal["relu", "gelu", "leaky_relu", "tanh", "sigmoid"]
NormName = Literal["pre", "post"]
JudgeName = Literal["another", "same", "several"]

Own = Callable[..., Any]
"""A function of the user's."""

NULLPORT = "nullport"
"""The method that is nullport's own."""

NONE = "none"
"""The method of those that do not teleport, as another initialisation does not."""

USUAL = {
    "mnist_autoencoder": "autoencoder",
    "shakespeare": "transformer",
    "wikitext": "transformer",
    "adding": "lstm",
    "poisson": "pinn",
}
"""The model of each task for which it is no MLP."""

LEARNING_RATES: dict[str, float] = {
    "sgd": 0.1,
    "momentum": 0.03,
    "adagrad": 0.01,
    "adam": 0.001,
    "adamw": 0.001,
}
"""Learning rate of each optimizer where none is given."""

SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"width": 256, "depth": 3},
    "cnn": {"width": 16, "depth": 2},
    "vgg": {"width": 8, "depth": 8},
    "autoencoder": {"width": 400, "depth": 3},
    "transformer": {"width": 64, "depth": 2},
    "lstm": {"width": 64, "depth": 1},
    "pinn": {"width": 64, "depth": 4, "activation": "tanh"},
}
"""Size of each model where none is given, and what it cannot do without: curved activations."""

FUNCTIONS: dict[str, tuple[str, ...]] = {
    "model": get_args(ModelName),
    "every": ("auto",),
    "method": (NULLPORT, NONE),
}
"""Fields that may be functions, with the words that never name one."""

_CHOICES: dict[str, Any] = {
    "model": ModelName,
    "optimizer": OptimizerName,
    "schedule": ScheduleName,
    "init": InitName,
    "activation": ActivationName,
    "norm": NormName,
    "judge": JudgeName,
}


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison. :meth:`make` fills in what depends on the task and the model.

    Attributes:
        task: Name of the task: digits (the default), diabetes, mnist, mnist_autoencoder, cifar10,
            ett, housing, shakespeare, wikitext, adding or poisson; or MODULE:FUNCTION
            (FILE.py:FUNCTION), a function that returns a task of your own.
        model: Kind of network: by default a transformer for text, an autoencoder for the task of
            that name, an LSTM for adding, a physics-informed network for poisson, else an MLP. CNNs
            and VGGs need images; MLPs and autoencoders take anything but text. A task with a
            network of its own has that. Or a function of the task and these settings that returns a
            network of your own.
        optimizer: What trains the network in both arms; by default sgd.
        lr: Learning rate at the start of the schedule; the default depends on the optimizer.
        width: Hidden units (of the widest layer of an autoencoder), channels of the first
            convolution, or size of the embedding; the default depends on the model.
        depth: Hidden layers (of an autoencoder: before its code), convolutions, or transformer
            blocks; the default depends on the model.
        schedule: How the learning rate goes with the compute spent.
        init: Initialisation: the framework's own; or with zero biases that of He et al. (2015), of
            Glorot and Bengio (2010, xavier), orthogonal (Saxe et al., 2014), or orthogonal and
            then scaled, layer by layer, to outputs of unit variance on a batch (lsuv; Mishkin and
            Matas, 2016).
        activation: Nonlinearity of the network; leaky_relu has slope 0.1.
        norm: Where the blocks of a transformer normalise: before each of their two parts, or
            after adding it (post-LN).
        bias: Whether the layers of an MLP have biases.
        seeds: Number of seeds; each gives an initialisation and an order of batches to both arms.
        budget: Compute of every run, in gradients of a training batch.
        batch: Samples in a training batch.
        every: Training steps between teleports, or ``"auto"``: early ones, and fewer when they are
            refused. Or a function of the schedule's state that says whether a teleport is due.
        at: Training steps before which to teleport, instead of when the policy says.
        captured: Samples of the training batch that teleports are made from.
        guard: Whether other samples have a say in accepting a teleport.
        judge: Which samples have: another batch than the objective reads, the same one, or several
            recent batches together.
        device: Where to train, as the backend names it.
        threads: Threads that a CPU computes with. More make large networks faster, and seconds
            less comparable where other work is going on.
        method: What teleports: nullport, another method that the backend knows, or none. Or a
            function of yours that moves the weights.
        options: Settings of such a method, as pairs of name and value.
        teleport: Settings of nullport's teleports.

    Raises:
        ValueError: If a value is outside what is allowed; the message names both.
    """

    task: str
    model: ModelName | Own
    optimizer: OptimizerName
    lr: float
    width: int
    depth: int
    schedule: ScheduleName = "cosine"
    init: InitName = "default"
    activation: ActivationName = "relu"
    norm: NormName = "pre"
    bias: bool = True
    seeds: int = 3
    budget: int = 1000
    batch: int = 64
    every: Literal["auto"] | int | Own = "auto"
    at: tuple[int, ...] = ()
    captured: Literal["batch"] | int = "batch"
    guard: bool = True
    judge: JudgeName = "another"
    device: str = "cpu"
    threads: int = 1
    method: str | Own = NULLPORT
    options: tuple[tuple[str, Any], ...] = ()
    teleport: TeleportConfig = field(default_factory=TeleportConfig)

    @classmethod
    def make(cls, task: str = "digits", **given: Any) -> Settings:
        """Make settings from those that are given, by the names of the attributes.

        Raises:
            ValueError: If a value is outside what is allowed.

        >>> Settings.make("shakespeare", optimizer="adam").model
        'transformer'
        >>> Settings.make(model="cnn").lr
        0.1
        """
        model = given.get("model", USUAL.get(task, "mlp"))
        optimizer = given.get("optimizer", "sgd")
        rate = LEARNING_RATES.get(optimizer, math.nan)
        sizes = SIZES.get(model, SIZES["mlp"])
        defaults = {"model": model, "optimizer": optimizer, "lr": rate, **sizes}
        return cls(task, **{**defaults, **given})

    def __post_init__(self) -> None:
        """Check every field."""
        self._find_functions()
        for name, choices in _CHOICES.items():
            value, allowed = getattr(self, name), get_args(choices)
            own = name in FUNCTIONS
            if value not in allowed and not (own and callable(value)):
                more = ", FILE.py:FUNCTION" * own
                msg = f"invalid {name}: {value!r}; allowed: {', '.join(map(repr, allowed))}{more}"
                raise ValueError(msg)
        for name in ("width", "depth", "seeds", "budget", "batch", "threads"):
            _check_count(name, getattr(self, name))
        if not callable(self.every):
            Rule.parse(self.every)
        if self.captured != "batch":
            _check_count("captured", self.captured, "'batch' or ")
        object.__setattr__(self, "at", tuple(self.at))
        for step in self.at:
            _check_count("at", step)
        pairs = self.options.items() if isinstance(self.options, Mapping) else self.options
        object.__setattr__(self, "options", tuple((str(k), v) for k, v in pairs))
        if self.options and self.method in (NULLPORT, NONE):
            msg = f"invalid options: {dict(self.options)!r}; allowed with method {self.method!r}: "
            raise ValueError(msg + "none, its settings are those of teleport")
        if not self.bias and self.model != "mlp" and not callable(self.model):
            msg = f"invalid bias: False for a {self.model}; allowed: True, or model 'mlp'"
            raise ValueError(msg)
        if self.norm != "pre" and self.model != "transformer" and not callable(self.model):
            msg = f"invalid norm: {self.norm!r} for a {self.model}; allowed: 'pre', or model "
            raise ValueError(msg + "'transformer'")
        if not isinstance(self.lr, int | float) or not 0 < self.lr < math.inf:
            msg = f"invalid lr: {self.lr!r}; allowed: a finite number above 0"
            raise ValueError(msg)

    @property
    def own(self) -> bool:
        """Whether something in a run is the user's own, so that it may fail in any way."""
        teleport = self.teleport
        parts = (self.model, self.every, self.method, teleport.objective, teleport.projection)
        return any(map(callable, parts)) or known_as("task", self.task) is not None

    def _find_functions(self) -> None:
        """Put functions in the place of their names."""
        for name, known in FUNCTIONS.items():
            value = getattr(self, name)
            if isinstance(value, str) and value not in known:
                object.__setattr__(self, name, known_as(name, value) or value)


def _check_count(name: str, value: object, else_allowed: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = f"invalid {name}: {value!r}; allowed: {else_allowed}an integer of at least 1"
        raise ValueError(msg)
