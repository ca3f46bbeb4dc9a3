"""Free adversarial training (Shafahi et al. 2019): each batch several times, its perturbation carried along."""

from setting import EPS, begin

import soatfast as sf

REPEATS = 4
criterion = sf.Free(eps=EPS, replays=REPEATS)


def step(model, optimizer, x, y):
    model.train()
    loss = criterion(model, x, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


if __name__ == "__main__":
    model, optimizer, batches = begin(__doc__)
    for x, y in batches:
        for _ in range(REPEATS):
            loss = step(model, optimizer, x, y)
        print(f"loss {loss:.4f}")
