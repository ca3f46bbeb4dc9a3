"""Training: data, models, the trainer, and the comparison of defences."""

from soatfast.train.data import Batch, Batches, Data, load_data
from soatfast.train.errors import MissingDataError, RunFolderError, UserError
from soatfast.train.guard import OverfittingGuard, OverfittingWarning
from soatfast.train.indexed import IndexedDataset, ShardedSampler
from soatfast.train.models import MODELS, Normalize, ResNet18, SmallCNN, WideResNet, build_model
from soatfast.train.trainer import TrainConfig, TrainResult, train

__all__ = [
    "MODELS",
    "Batch",
    "Batches",
    "Data",
    "IndexedDataset",
    "MissingDataError",
    "Normalize",
    "OverfittingGuard",
    "OverfittingWarning",
    "ResNet18",
    "RunFolderError",
    "ShardedSampler",
    "SmallCNN",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "WideResNet",
    "build_model",
    "load_data",
    "train",
]
