"""Scripts written for torchattacks or for the TRADES authors' code need one changed import, and nothing else.

Run it with ``python examples/one_import.py``; where torchattacks is installed, its images are compared with ours.
"""

import importlib.util

import torch

import soatfast as sf
import soatfast.compat.torchattacks as torchattacks  # was: import torchattacks
from soatfast.compat.trades import trades_loss  # was: from trades import trades_loss

torch.manual_seed(0)
model = sf.train.SmallCNN(in_channels=3, size=32).eval()
images, labels = torch.rand(64, 3, 32, 32), torch.randint(10, (64,))

attack = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=True)
torch.manual_seed(1)
ours = attack(images, labels)

if importlib.util.find_spec("torchattacks"):
    original = importlib.import_module("torchattacks")
    torch.manual_seed(1)
    theirs = original.PGD(model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=True)(images, labels)
    same = (ours - theirs).abs() <= 1e-6  # a pixel differs where the sign of its gradient hangs on rounding
    print(f"same pixels as torchattacks: {same.double().mean():.4f}")
    agree = (model(ours).argmax(1) == model(theirs).argmax(1)).double().mean()
    print(f"same predictions: {agree:.3f}")
else:
    print("torchattacks is not installed: nothing to compare with")

optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with sf.count_passes(model) as counted:
    loss = trades_loss(model, images, labels, optimizer, step_size=2 / 255, epsilon=8 / 255, perturb_steps=10, beta=6.0)
    loss.backward()
optimizer.step()
print(f"TRADES loss {loss.item():.3f} from {counted.forward} forwards; the authors' code makes 23")
