"""The jobs that a person runs; each drives the parts of ``pipeline``."""
