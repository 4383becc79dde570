"""How many classes does the processor's code work on at once? Known without numba, which `pipeline.lanes` needs."""

N_LANES = 8
"""Numbers in one vector."""
