"""The binary interface of io_uring: constants and record types, and nothing that acts.

Source: the kernel's ``include/uapi/linux/io_uring.h`` and io_uring_setup(2), io_uring_enter(2),
io_uring_register(2). System-call numbers are the same on every architecture we run on.
"""

from __future__ import annotations

import numpy as np

SYS_SETUP = 425
SYS_ENTER = 426
SYS_REGISTER = 427

SETUP_CQSIZE = 1 << 3
SETUP_SUBMIT_ALL = 1 << 7
SETUP_SINGLE_ISSUER = 1 << 12
SETUP_DEFER_TASKRUN = 1 << 13

FEAT_SINGLE_MMAP = 1 << 0
FEAT_NODROP = 1 << 1

ENTER_GETEVENTS = 1 << 0

OFF_RINGS = 0
OFF_SQES = 0x10000000

OP_READ = 22
IOSQE_IO_LINK = 1 << 2
"""The next entry of the same submission starts when this one is complete; a short read ends the series."""

OP_SUPPORTED = 1 << 0

REGISTER_PROBE = 8


SQE = np.dtype(
    [
        ("opcode", np.uint8),
        ("flags", np.uint8),
        ("ioprio", np.uint16),
        ("fd", np.int32),
        ("off", np.uint64),
        ("addr", np.uint64),
        ("len", np.uint32),
        ("rw_flags", np.uint32),
        ("user_data", np.uint64),
        ("buf_index", np.uint16),
        ("personality", np.uint16),
        ("file_index", np.int32),
        ("addr3", np.uint64),
        ("pad", np.uint64),
    ]
)
"""``struct io_uring_sqe``."""

CQE = np.dtype([("user_data", np.uint64), ("res", np.int32), ("flags", np.uint32)])
"""``struct io_uring_cqe``."""

_SQ_OFFSETS = np.dtype(
    [
        (name, np.uint32)
        for name in ("head", "tail", "ring_mask", "ring_entries", "flags", "dropped", "array", "resv1")
    ]
    + [("user_addr", np.uint64)]
)
_CQ_OFFSETS = np.dtype(
    [
        (name, np.uint32)
        for name in ("head", "tail", "ring_mask", "ring_entries", "overflow", "cqes", "flags", "resv1")
    ]
    + [("user_addr", np.uint64)]
)

PARAMS = np.dtype(
    [
        ("sq_entries", np.uint32),
        ("cq_entries", np.uint32),
        ("flags", np.uint32),
        ("sq_thread_cpu", np.uint32),
        ("sq_thread_idle", np.uint32),
        ("features", np.uint32),
        ("wq_fd", np.uint32),
        ("resv", np.uint32, 3),
        ("sq_off", _SQ_OFFSETS),
        ("cq_off", _CQ_OFFSETS),
    ]
)
"""``struct io_uring_params``."""

_PROBE_OPS = 256
_PROBE_OP = np.dtype([("op", np.uint8), ("resv", np.uint8), ("flags", np.uint16), ("resv2", np.uint32)])
PROBE = np.dtype(
    [
        ("last_op", np.uint8),
        ("ops_len", np.uint8),
        ("resv", np.uint16),
        ("resv2", np.uint32, 3),
        ("ops", _PROBE_OP, _PROBE_OPS),
    ]
)
"""``struct io_uring_probe``, with room for every opcode there can be."""

_SIZES = {"SQE": (SQE, 64), "CQE": (CQE, 16), "PARAMS": (PARAMS, 120), "PROBE": (PROBE, 16 + 8 * _PROBE_OPS)}
for _name, (_dtype, _size) in _SIZES.items():
    assert _dtype.itemsize == _size, _name  # noqa: S101 - another size would corrupt memory
