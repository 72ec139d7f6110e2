"""Drivers: the threads and loops that act on what the scheduler core decides."""
