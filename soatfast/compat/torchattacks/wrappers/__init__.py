"""Attacks made of attacks, by the paths that torchattacks has them at."""
