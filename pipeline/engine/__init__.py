"""Where the network runs: the only rooms that know devices."""
