"""Backends: how ops, once admitted, are performed. One module each; shared things are in private ones."""
