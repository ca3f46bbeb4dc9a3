"""Training: data, models, the trainer, and the comparison of defences."""

from soatfast.train.data import Batch, Batches, Data, load_data
from soatfast.train.errors import MissingDataError, ModelError, RunFolderError, UserError
from soatfast.train.guard import OverfittingGuard, OverfittingWarning
from soatfast.train.indexed import IndexedDataset, ShardedSampler
from soatfast.train.models import MODELS, Normalize, ResNet18, SmallCNN, WideResNet, build_model
from soatfast.train.specs import Subject, load_weights, make_model
from soatfast.train.trainer import TrainConfig, TrainResult, train

__all__ = [
    "MODELS",
    "Batch",
    "Batches",
    "Data",
    "IndexedDataset",
    "MissingDataError",
    "ModelError",
    "Normalize",
    "OverfittingGuard",
    "OverfittingWarning",
    "ResNet18",
    "RunFolderError",
    "ShardedSampler",
    "SmallCNN",
    "Subject",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "WideResNet",
    "build_model",
    "load_data",
    "load_weights",
    "make_model",
    "train",
]
