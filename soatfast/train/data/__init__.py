"""Data sets, and batches of them in an order that a seed fixes."""

from soatfast.train.data.batches import Batch, Batches
from soatfast.train.data.indexed import IndexedDataset, ShardedSampler
from soatfast.train.data.sets import Data, load_data
from soatfast.train.data.transform import CropFlipTransform

__all__ = ["Batch", "Batches", "CropFlipTransform", "Data", "IndexedDataset", "ShardedSampler", "load_data"]
