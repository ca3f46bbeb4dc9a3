"""The training memory: each sample's perturbation, kept from one visit to the next."""

from soatfast.memory.crops import CropFlip
from soatfast.memory.shards import shard_range
from soatfast.memory.store import PerturbationMemory
from soatfast.memory.visit import Visit

__all__ = ["CropFlip", "PerturbationMemory", "Visit", "shard_range"]
