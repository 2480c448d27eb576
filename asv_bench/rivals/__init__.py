"""Rivals of nullport, each written from its published formula, behind one small interface.

Every rival is a function ``teleport(problem, *, steps, rate, ...) -> None`` that moves the weights
of a :class:`rivals.problem.Problem` in place:

==================== ============================================================================
``literal``          null-space projection taken literally (Wu et al., 2025)
``symmetry``         group actions between layers (Zhao et al., 2022; Zhao et al., 2024)
``level_set``        level sets by normalised SLP (Mishkin, Bietti and Gower, 2024)
``rescaling``        diagonal rescaling, accepted by virtual SGD steps (a package of 2026)
``controls``         a random null-space move; a learning rate matched to the gradient's growth
==================== ============================================================================

``settings`` chooses the settings of each on pilot problems; ``comparison`` measures all of
them on one more.
"""
