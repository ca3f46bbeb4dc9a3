"""The lines to change in a script, as far as its passes tell them."""

from __future__ import annotations

from soatfast.profile.looks import THROUGH
from soatfast.profile.recorder import Call
from soatfast.profile.steps import Step


def changes(step: Step, call: Call | None, places: list[str]) -> list[str]:
    """Lines of code and where they go; radius and step size stay the script's."""
    if not step.attack_passes or call is None:
        return []
    found = [f"# the passes of the attack begin at {place}" for place in places[:3]]
    mode = "train" if call.training else "eval"
    count = step.attack_passes
    if places and places[0].endswith(f"{THROUGH}torchattacks"):
        found.append("import soatfast.compat.torchattacks as torchattacks  # was: import torchattacks")
    elif step.repeated >= count > 1:
        found.append("from soatfast.compat.trades import trades_loss  # was: the script's trades_loss")
    else:
        found.append("import soatfast as sf")
        found.append(f'attack = sf.PGD(eps=..., step_size=..., steps={count}, mode="{mode}")  # once')
        found.append("x_adv = attack(model, x, y)  # in place of the loop")
    found.append('# engine="bf16" in the attack: cheaper passes, signs of tiny gradients differ')
    if count > 1:
        found.append("# one pass a batch: sf.AdversarialTraining(sf.FrankWolfe(eps=..., steps=1), memory=memory)")
    found.append("sf.keep_memory()  # the first line, on a CPU under Linux")
    return found
