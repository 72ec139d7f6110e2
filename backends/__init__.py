"""Backends: how ops, once admitted, are performed. One module each; they import only `abc`."""
