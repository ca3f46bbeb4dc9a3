"""What identifies a batch and a model in a run folder."""

import torch

from soatfast.runs import files
from tests.nets import batch, relu_net


def test_digests_tell_batches_and_weights_apart():
    net, (x, y) = relu_net(), batch(3)
    marks = {files.digest(x, y), files.digest(x + 1e-9, y), files.digest(x.float(), y), files.digest(x, y + 1)}
    assert len(marks) == 4 and files.digest(x.clone(), y) in marks
    other = relu_net()
    assert files.fingerprint(net) == files.fingerprint(other)
    with torch.no_grad():
        other[3].bias[0] += 1e-12
    assert files.fingerprint(net) != files.fingerprint(other)
    scalar = torch.nn.BatchNorm1d(2).half()  # a 0-d buffer and half parameters
    assert len(files.fingerprint(scalar)) == 64
