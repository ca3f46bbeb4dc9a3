"""Training: data, models, the trainer. It needs ``pip install 'soatfast[train]'``."""

from soatfast.runs.errors import MissingDataError, ModelError, RunFolderError, UserError
from soatfast.runs.errors import extra_of as _extra_of
from soatfast.train.config import TrainConfig, TrainResult
from soatfast.train.data.batches import Batch, Batches
from soatfast.train.data.indexed import IndexedDataset, ShardedSampler
from soatfast.train.data.sets import Data, load_data
from soatfast.train.data.transform import CropFlipTransform
from soatfast.train.guard import OverfittingGuard, OverfittingWarning
from soatfast.train.models import MODELS, Normalize, ResNet18, SmallCNN, WideResNet, build_model
from soatfast.train.subject import Subject, load_weights, make_model

try:
    from soatfast.train.trainer import train
except ModuleNotFoundError as error:
    if not _extra_of(error):
        raise
    raise ModuleNotFoundError(f"soatfast.train: {_extra_of(error)}", name=error.name) from error

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
