"""Integrations: what headrace does for one library in particular, loaded when that is in use."""
