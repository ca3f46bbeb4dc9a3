"""torchattacks' attacks, each by the path that torchattacks has it at."""
