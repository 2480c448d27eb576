"""Other teleports, each written from its published formula, to compare nullport with.

They are no part of how nullport teleports. Every one is a function ``teleport(problem, *, steps,
rate, ...)`` that moves the weights of a :class:`~nullport_torch.lab.baselines.problem.Problem` in
place:

- ``literal``: null-space projection taken literally (Wu et al., 2025). Moves ``nn.Linear`` layers.
- ``symmetry``: group actions between layers (Zhao et al., arXiv 2205.10637 and 2305.13404). Asks
  for a bias-free LeakyReLU chain with no more samples than inputs or hidden units.
- ``level_set``: level sets by normalised SLP (Mishkin, Bietti and Gower, arXiv 2403.03362). Takes
  any network that can be differentiated twice.
- ``rescaling``: diagonal rescaling, accepted by virtual SGD steps (a package of 2026). Asks for a
  bias-free (Leaky)ReLU chain, or attention.
- ``controls``: a random null-space move, and a learning rate matched to what nullport's teleport
  would make of the gradient. Take any network.

``methods`` makes those of :data:`NAMES` available to training loops.
"""

NAMES = ("symmetry", "level_set", "random", "matched_rate", "literal")
"""Methods that a training loop can teleport with; importing them is left to who uses them."""
