"""Training: data, models, the trainer, and the comparison of defences."""

from soatfast.runs.errors import MissingDataError, ModelError, RunFolderError, UserError
from soatfast.train.config import TrainConfig, TrainResult
from soatfast.train.data.batches import Batch, Batches
from soatfast.train.data.indexed import IndexedDataset, ShardedSampler
from soatfast.train.data.sets import Data, load_data
from soatfast.train.data.transform import CropFlipTransform
from soatfast.train.guard import OverfittingGuard, OverfittingWarning
from soatfast.train.models import MODELS, Normalize, ResNet18, SmallCNN, WideResNet, build_model
from soatfast.train.subject import Subject, load_weights, make_model
from soatfast.train.trainer import train

__all__ = [
    "MODELS",
    "Batch",
    "Batches",
    "CropFlipTransform",
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
