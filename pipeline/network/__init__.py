"""The networks: how they are built, stored and found; torch only."""
