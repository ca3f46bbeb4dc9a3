"""TRADES training (Zhang et al. 2019), its loss as the authors' code computes it."""

from setting import EPS, begin

from soatfast.compat.trades import trades_loss


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = trades_loss(model, x, y, optimizer, step_size=EPS / 4, epsilon=EPS, perturb_steps=10, beta=6.0)
    loss.backward()
    optimizer.step()
    return loss.item()


if __name__ == "__main__":
    model, optimizer, batches = begin(__doc__)
    for x, y in batches:
        print(f"loss {step(model, optimizer, x, y):.4f}")
