"""How many classes does the processor's code work on at once? Known without numba, which `pipeline.lanes` needs."""

N_LANES = 8
"""Numbers in one vector, where nothing else is said."""
_FEW_LANES = 4
"""In a shorter one."""


Groups = tuple[tuple[int, ...], ...]
"""A tuple for each group of lanes, with a member for each lane of it: what compiled code knows of tuples is how long they are."""


def class_groups(n_classes: int) -> Groups:
    """Return the groups of lanes in which the mean field of so many classes has all of them but the last (`pipeline.crf.mean_field`)."""
    n_others = n_classes - 1
    width = _FEW_LANES if n_others <= _FEW_LANES else N_LANES
    return ((0,) * width,) * max(1, -(-n_others // width))
