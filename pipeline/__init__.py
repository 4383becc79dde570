"""The parts that one block of a scene passes through: numpy or torch in, numpy out; no dask, no click."""
