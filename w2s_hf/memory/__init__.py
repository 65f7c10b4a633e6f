"""Estimates the memory that training a student needs: `w2s memory Qwen/Qwen-72B --gpus 1x80`."""

from .estimate import (
    OPTIMIZERS,
    MemoryEstimate,
    NoEstimateError,
    StudentMemory,
    config_of,
    estimate_memory,
    gib,
    memory_table,
    usable_bytes,
    with_layers,
)

__all__ = [
    "OPTIMIZERS",
    "MemoryEstimate",
    "NoEstimateError",
    "StudentMemory",
    "config_of",
    "estimate_memory",
    "gib",
    "memory_table",
    "usable_bytes",
    "with_layers",
]
