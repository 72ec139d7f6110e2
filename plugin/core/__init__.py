"""The scheduler core: sans-I/O. It decides and returns what to perform; drivers perform it."""
