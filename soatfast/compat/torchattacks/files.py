"""Saved adversarial images, in torchattacks' own file format."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class Files:
    """What an attack has for files; the names that it uses of an attack are declared first."""

    device: torch.device | str | None
    normalization_used: dict[str, Tensor] | None

    def __call__(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def get_output_with_eval_nograd(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def inverse_normalize(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def save(
        self,
        data_loader: DataLoader[Any],
        save_path: str | Path | None = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_inputs: bool = False,
        save_type: str = "float",
    ) -> tuple[float, float, float] | None:
        """Attack every batch of a loader and write the images, in [0, 1], with their labels.

        The file is torchattacks': a dict of adv_inputs, labels, preds, clean_inputs and save_type, which either
        library loads. It is written once, at the end.

        Args:
            data_loader: batches (images, labels).
            save_path: None writes nothing.
            verbose: print progress.
            return_verbose: return (robust accuracy in percent, mean L2 distance of the successes, seconds of the last
                batch).
            save_predictions, save_clean_inputs: write them too.
            save_type: "float", or "int" for uint8, rounded down.

        Raises:
            ValueError: another save_type, a loader without batches, or no folder for save_path: before any attack.
        """
        if save_type not in ("float", "int"):
            raise ValueError(f"{save_type} is not a valid type. [Options: float, int]")
        if save_path is not None and not Path(save_path).parent.is_dir():
            raise ValueError(f"save_path must be in a folder that is there, got {save_path}")
        kept: dict[str, list[Tensor]] = {}
        distances: list[Tensor] = []
        step, right, total = -1, 0, 0
        figures = (float("nan"), float("nan"), 0.0)
        for step, (inputs, labels) in enumerate(data_loader):
            start = time.time()
            adv_inputs = self(inputs, labels)
            made = {"adv_inputs": adv_inputs, "labels": labels}
            if verbose or return_verbose or save_predictions:
                predicted = self.get_output_with_eval_nograd(adv_inputs).argmax(1)
                if save_predictions:
                    made["preds"] = predicted
                correct = predicted == labels.to(self.device)
                right, total = right + int(correct.sum()), total + len(labels)
                moved = (adv_inputs - inputs.to(self.device)).flatten(1)
                distances.append(moved[~correct].norm(p=2, dim=1))
                figures = (100 * right / total, torch.cat(distances).mean().item(), time.time() - start)
                if verbose:
                    self._save_print((step + 1) / len(data_loader) * 100, *figures, end="\r")
            if save_clean_inputs:
                made["clean_inputs"] = inputs
            if save_path is not None:
                for name, values in made.items():
                    kept.setdefault(name, []).append(values.cpu())
        if step < 0:
            raise ValueError("data_loader has no batches")
        if verbose:
            self._save_print(100.0, *figures, end="\n")  # so that what was printed last stays
        if save_path is not None:
            torch.save(self._file(kept, save_type), save_path)
        return figures if return_verbose else None

    def _file(self, kept: dict[str, list[Tensor]], save_type: str) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for name, parts in kept.items():
            values = torch.cat(parts)
            if name in ("adv_inputs", "clean_inputs"):
                if self.normalization_used is not None:
                    values = self.inverse_normalize(values)
                values = self.to_type(values, save_type)
            content[name] = values
        return {**content, "save_type": save_type}

    @staticmethod
    def to_type(inputs: Tensor, type: str) -> Tensor:
        """Images as uint8 ("int"; rounded down, as torchattacks does) or as floats ("float")."""
        if type not in ("float", "int"):
            raise ValueError(f"{type} is not a valid type. [Options: float, int]")
        if type == "int" and inputs.is_floating_point():
            wide = inputs if inputs.dtype.itemsize > 2 else inputs.float()
            return (wide * 255).to(torch.uint8)
        if type == "float" and inputs.dtype == torch.uint8:
            return inputs.float() / 255
        return inputs

    @staticmethod
    def _save_print(progress: float, rob_acc: float, l2: float, elapsed_time: float, end: str) -> None:
        figures = f"Robust accuracy: {rob_acc:2.2f} % / L2: {l2:1.5f} ({elapsed_time:2.3f} it/s) \t"
        print(f"- Save progress: {progress:2.2f} % / {figures}", end=end)

    @staticmethod
    def load(
        load_path: str | Path,
        batch_size: int = 128,
        shuffle: bool = False,
        normalize: dict[str, Sequence[float]] | None = None,
        load_predictions: bool = False,
        load_clean_inputs: bool = False,
    ) -> DataLoader[Any]:
        """A loader of a saved file: adversarial images, labels, then predictions and clean images if asked for.

        Tensors only are read, so that a file cannot run code. normalize: {"mean", "std"} to normalise images with.

        Raises:
            OSError: the file is not there, or cannot be read.
            ValueError: the file is damaged, holds more than tensors, is no such dict, or lacks what is asked for.
        """
        try:
            content = torch.load(load_path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:
            raise ValueError(
                f"{load_path} is not read: it is damaged, or holds more than tensors, and unpickling that could run "
                "its code; expected a file of attack.save(...)"
            ) from error
        names = ["adv_inputs", "labels"] + ["preds"] * load_predictions + ["clean_inputs"] * load_clean_inputs
        missing = [name for name in (*names, "save_type") if not isinstance(content, dict) or name not in content]
        if missing:
            raise ValueError(f"{load_path} has no {', '.join(missing)}: expected a file of attack.save(...)")
        strange = [name for name in names if not isinstance(content[name], Tensor)]
        if strange:
            raise ValueError(f"{load_path}: {', '.join(strange)} must be tensors: expected a file of attack.save(...)")
        for name in {"adv_inputs", "clean_inputs"}.intersection(names):
            if content["save_type"] == "int":
                content[name] = content[name].float() / 255
            if normalize is not None:
                mean, std = (torch.tensor(normalize[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
                content[name] = (content[name] - mean) / std
        print(f"Data is loaded in the following order: [{', '.join(names)}]")
        return DataLoader(TensorDataset(*(content[name] for name in names)), batch_size=batch_size, shuffle=shuffle)
