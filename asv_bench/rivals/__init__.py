"""The comparison of nullport with the other teleports of ``nullport_torch.lab.baselines``.

``settings`` chooses the settings of each on pilot problems; ``measure`` says what a teleport did,
and ``comparison`` does it for all of them on one more problem.
"""
