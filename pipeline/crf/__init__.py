"""The fully connected CRF: its energy, and the backends that minimise it."""
