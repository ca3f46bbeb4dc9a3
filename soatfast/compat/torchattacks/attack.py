"""The base class: model state, normalisation and target labels, as torchattacks.attack.Attack has them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from soatfast import attacks
from soatfast.attacks import targets
from soatfast.compat.torchattacks.files import Files
from soatfast.gradients.checks import check_labels
from soatfast.gradients.passes import unwrap
from soatfast.gradients.state import ModelState
from soatfast.ops.arguments import check, dtype_or_kind

Labels = Tensor | None


def _inner_too(method: Callable[..., Any]) -> Callable[..., Any]:
    """A setter that also reaches the attacks an attack is made of, those of other libraries that have it included."""

    @functools.wraps(method)
    def setter(self: Attack, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        for inner in _attacks_in(vars(self), method.__name__, {id(self)}):
            getattr(inner, method.__name__)(*args, **kwargs)
        return result

    return setter


def _attacks_in(value: Any, setter: str, seen: set[int]) -> Iterator[Any]:
    """The attacks in a value that have this setter: itself, or those in its dicts, lists, tuples and sets, each once.

    An attack is an object that can be called, and no module or class.
    """
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _attacks_in(item, setter, seen)
    elif callable(value) and not isinstance(value, (nn.Module, type)) and callable(getattr(value, setter, None)):
        yield value


class Attack(Files):
    """An attack that holds its model: ``attack(images, labels)``, images (N, C, H, W) in [0, 1].

    Subclasses define ``forward(images, labels)`` and call ``get_logits`` in it, as with torchattacks.

    Args:
        name: the attack's, what it is printed as.
        model: a module; the attack moves images and labels to its device.

    Raises:
        TypeError: the model is no module.
    """

    def __init__(self, name: str, model: nn.Module):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.attack = name
        self.set_model(model)
        first = next(model.parameters(), None)
        self.device: torch.device | str | None = None if first is None else first.device
        if first is None:
            print("Failed to set device automatically, please try set_device() manual.")
        self.attack_mode = "default"
        self.supported_mode = ["default"]
        self.targeted = False
        self._target_map_function: Callable[..., Tensor] | None = None
        self._kth_min = 1
        self.normalization_used: dict[str, Tensor] | None = None
        self._normalization_applied: bool | None = None
        self._model_training = self._batchnorm_training = self._dropout_training = False
        if type(model).__name__ == "RobModel":  # of MAIR: it normalises, and says how
            mean, std = getattr(model, "mean", None), getattr(model, "std", None)
            if mean is not None and std is not None and ((mean != 0).all() or (std != 1).all()):
                self.set_normalization_used(mean, std)

    def forward(self, inputs: Tensor, labels: Labels = None, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError

    def __call__(self, inputs: Tensor, labels: Labels = None, *args: Any, **kwargs: Any) -> Tensor:
        """Adversarial images on the model's device; the model is as it was afterwards, also after an error."""
        applied = self._normalization_applied
        try:
            with ModelState(self.model, "keep", freeze=False):
                self._change_model_mode()
                if not applied:
                    return self.forward(inputs, labels, *args, **kwargs)
                inputs = self.inverse_normalize(inputs)
                self._set_normalization_applied(False)
                return self.normalize(self.forward(inputs, labels, *args, **kwargs))
        finally:
            if applied:
                self._set_normalization_applied(True)

    def __setattr__(self, name: str, value: Any) -> None:
        """An attack that comes when normalisation is set already, as one made in ``forward``, is told of it."""
        super().__setattr__(name, value)
        used = vars(self).get("normalization_used")
        if used is None or name == "normalization_used":
            return
        for inner in _attacks_in(value, "set_normalization_used", {id(self)}):
            if getattr(inner, "normalization_used", None) is None:
                inner.set_normalization_used(used["mean"].flatten().tolist(), used["std"].flatten().tolist())
                inner._set_normalization_applied(self._normalization_applied)

    # ------------------------------------------------------------------------------------------ model and its state

    @_inner_too
    def set_model(self, model: nn.Module) -> None:
        self.model = model
        self.model_name = type(model).__name__

    @_inner_too
    def set_device(self, device: torch.device | str) -> None:
        self.device = device

    @_inner_too
    def set_model_training_mode(
        self, model_training: bool = False, batchnorm_training: bool = False, dropout_training: bool = False
    ) -> None:
        """Attack in train mode; batch norm and dropout are in it only if they are named too."""
        self._model_training = model_training
        self._batchnorm_training = batchnorm_training
        self._dropout_training = dropout_training

    def _change_model_mode(self) -> None:
        self.model.train(self._model_training)
        if self._model_training:
            for module in self.model.modules():
                name = type(module).__name__
                if ("BatchNorm" in name and not self._batchnorm_training) or (
                    "Dropout" in name and not self._dropout_training
                ):
                    module.eval()

    def get_logits(self, inputs: Tensor, labels: Labels = None, *args: Any, **kwargs: Any) -> Tensor:
        if self._normalization_applied is False:
            inputs = self.normalize(inputs)
        return unwrap(self.model)(inputs)

    @torch.no_grad()
    def get_output_with_eval_nograd(self, inputs: Tensor) -> Tensor:
        with ModelState(self.model, "eval", freeze=False):
            return self.get_logits(inputs)

    # ------------------------------------------------------------------------------------------ normalisation

    @_inner_too
    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Images come normalised with these per-channel numbers, and go back so; eps stays in units of [0, 1]."""
        m, s = (torch.as_tensor(values, dtype=torch.float32).flatten().cpu() for values in (mean, std))
        if len(m) != len(s) or not (s > 0).all():
            raise ValueError(f"mean and std need one number a channel, std > 0, got {m.tolist()} and {s.tolist()}")
        self.normalization_used = {"mean": m.view(1, -1, 1, 1), "std": s.view(1, -1, 1, 1)}
        self._set_normalization_applied(True)

    @_inner_too
    def _set_normalization_applied(self, flag: bool | None) -> None:
        self._normalization_applied = flag

    def normalize(self, inputs: Tensor) -> Tensor:
        mean, std = self._mean_and_std(inputs)
        return ((inputs - mean) / std).to(inputs.dtype)

    def inverse_normalize(self, inputs: Tensor) -> Tensor:
        mean, std = self._mean_and_std(inputs)
        return (inputs * std + mean).to(inputs.dtype)

    def _mean_and_std(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalization_used is None:
            raise ValueError("mean and std are not known: call set_normalization_used(mean, std) first")
        used = self.normalization_used
        return used["mean"].to(inputs.device), used["std"].to(inputs.device)

    # ------------------------------------------------------------------------------------------ attack modes

    def get_mode(self) -> str:
        return self.attack_mode

    @_inner_too
    def set_mode_default(self) -> None:
        self.attack_mode = "default"
        self.targeted = False
        print("Attack mode is changed to 'default.'")

    @_inner_too
    def set_mode_targeted_by_function(self, target_map_function: Callable[..., Tensor], quiet: bool = False) -> None:
        """Targets are target_map_function(images, labels), images in [0, 1]."""
        self._set_mode_targeted("targeted(custom)", quiet)
        self._target_map_function = target_map_function

    @_inner_too
    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """Targets are random classes other than the label; one forward a call finds the number of classes."""
        self._set_mode_targeted("targeted(random)", quiet)
        self._target_map_function = self.get_random_target_label

    @_inner_too
    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """Targets are the classes of the kth_min-th smallest logit, the label left out; one forward a call."""
        if kth_min < 1:
            raise ValueError(f"kth_min must be at least 1, got {kth_min!r}")
        self._set_mode_targeted("targeted(least-likely)", quiet)
        self._kth_min = kth_min
        self._target_map_function = self.get_least_likely_label

    @_inner_too
    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """The labels of the call are the targets."""
        self._set_mode_targeted("targeted(label)", quiet)
        self._target_map_function = lambda images, labels: labels

    def _set_mode_targeted(self, mode: str, quiet: bool) -> None:
        if "targeted" not in self.supported_mode:
            raise ValueError("Targeted mode is not supported.")
        self.targeted = True
        self.attack_mode = mode
        if not quiet:
            print(f"Attack mode is changed to '{mode}'.")

    def get_target_label(self, inputs: Tensor, labels: Labels = None) -> Tensor:
        if self._target_map_function is None:
            raise ValueError("target_map_function is not initialized by set_mode_targeted.")
        return self._target_map_function(inputs, labels)

    def get_least_likely_label(self, inputs: Tensor, labels: Labels = None) -> Tensor:
        logits, labels = self._logits_and_labels(inputs, labels)
        return targets.from_logits(logits, labels, "least-likely", k=self._kth_min)

    def get_random_target_label(self, inputs: Tensor, labels: Labels = None) -> Tensor:
        """As torchattacks draws them, one number of the CPU's generator each, but without a loop."""
        logits, labels = self._logits_and_labels(inputs, labels)
        chosen = ((logits.shape[1] - 1) * torch.rand(len(labels))).long().to(logits.device)
        return chosen + (chosen >= labels)

    def _logits_and_labels(self, inputs: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """Of one forward; without labels the predictions stand for them."""
        logits = self.get_output_with_eval_nograd(inputs)
        labels = logits.argmax(1) if labels is None else labels.to(logits.device)
        if len(labels):
            check_labels(labels, logits.shape[1])
        return logits, labels

    # ------------------------------------------------------------------------------------------ towards soatfast

    def _inputs(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """Images, and labels or targets, on the model's device."""
        images = self._images(images)
        if labels is None:
            raise TypeError(f"{self.attack} needs labels, got None")
        labels = labels.detach().to(self.device)
        return images, self.get_target_label(images, labels).to(images.device) if self.targeted else labels

    def _images(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise TypeError(f"images must be a floating tensor, got {dtype_or_kind(images)}")
        images = images.detach().to(self.device)
        if images.numel():
            slack = max(1e-6, 8 * torch.finfo(images.dtype).eps) if self.normalization_used else 1e-6
            low, high = torch.aminmax(images)
            check(
                (low >= -slack) & (high <= 1 + slack),
                lambda: (
                    f"images must lie in [0, 1] without NaN, got values from {low.item()} to {high.item()}; for "
                    "normalised images call set_normalization_used(mean, std)"
                ),
            )
        return images.clamp(0, 1) if self.normalization_used else images

    def _run(self, attack: attacks.Attack, images: Tensor, labels: Tensor) -> Tensor:
        return attack(Logits(self), images, labels)

    def __repr__(self) -> str:
        shown = {k: v for k, v in vars(self).items() if k[0] != "_" and k not in ("model", "attack", "supported_mode")}
        shown["normalization_used"] = self.normalization_used is not None
        return f"{self.attack}({', '.join(f'{key}={value}' for key, value in shown.items())})"


class Logits(nn.Module):
    """images in [0, 1] -> logits, by an attack's ``get_logits``; a module, so that the model's state is kept."""

    def __init__(self, attack: Attack):
        super().__init__()
        self.model = unwrap(attack.model)
        self.get_logits = attack.get_logits

    def forward(self, images: Tensor) -> Tensor:
        return self.get_logits(images)
