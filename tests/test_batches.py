"""Batches: the same rows resident or read from disk, one read ahead, errors and early ends."""

import itertools
import threading

import numpy as np
import pytest
import torch

from pyro_bvae.datasets import Data
from pyro_bvae.datasets.batches import _fits, batches, starts

CPU = torch.device("cpu")


class Disk:
    """Rows that are read lazily, and remember which were asked for."""

    def __init__(self, x, fail_at=None):
        self.x, self.shape, self.dtype = x, x.shape, x.dtype
        self.reads, self.fail_at, self.second = [], fail_at, threading.Event()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.reads.append(np.asarray(index))
        if len(self.reads) == self.fail_at:
            raise OSError("the disk is gone")
        if len(self.reads) == 2:
            self.second.set()
        return self.x[index]


def images(n=23):
    return np.random.default_rng(0).integers(0, 256, (n, 1, 4, 4)).astype(np.uint8)


def epochs(data, count, batch_size=5, labels=False):
    generator = torch.Generator().manual_seed(3)
    made = batches(data, batch_size, generator, CPU, labels)
    return [[(x, y) for x, y, _ in epoch] for epoch in itertools.islice(made, count)]


def test_an_epoch_is_every_row_once_as_floats_in_a_new_order():
    x, labels = images(), np.arange(23)
    first, second = epochs(Data(x, labels), 2, labels=True)
    for epoch in (first, second):
        order = torch.cat([y for _, y in epoch])
        assert sorted(order.tolist()) == list(range(23))
        assert [len(xs) for xs, _ in epoch] == [5, 5, 5, 5, 3]
        values = torch.cat([xs for xs, _ in epoch])
        assert values.dtype == torch.float32
        np.testing.assert_allclose(values.numpy(), x[order.numpy()] / np.float32(255), rtol=1e-7)
    assert not torch.equal(first[0][1], second[0][1])


@pytest.mark.parametrize("labels", [False, True])
def test_rows_on_disk_give_the_same_batches(labels):
    x, y = images(), np.arange(23) % 4
    resident = epochs(Data(x, y), 2, labels=labels)
    disk = Disk(x)
    streamed = epochs(Data(disk, y), 2, labels=labels)
    assert len(disk.reads) == 10
    for (a, own), (b, other) in zip(sum(resident, []), sum(streamed, []), strict=True):
        assert torch.equal(a, b)
        assert (own is None and other is None) if not labels else torch.equal(own, other)


def test_the_next_batch_is_read_while_one_is_used():
    disk = Disk(images())
    epoch = next(batches(Data(disk), 5, torch.Generator(), CPU))
    next(epoch)
    assert disk.second.wait(10)  # read by the thread: nobody has asked for it yet
    epoch.close()  # an end in the middle of an epoch waits for no more than one read
    assert len(disk.reads) == 2


def test_an_error_while_reading_reaches_the_training():
    epoch = next(batches(Data(Disk(images(), fail_at=3)), 5, torch.Generator(), CPU))
    next(epoch), next(epoch)
    with pytest.raises(OSError, match="the disk is gone"):
        next(epoch)


@pytest.mark.parametrize(
    "n, batch, expected",
    [(10, 5, [0, 5]), (11, 5, [0, 5]), (12, 5, [0, 5, 10]), (3, 1, [0, 1, 2]), (1, 5, [0])],
)
def test_starts_leave_out_a_last_batch_of_one(n, batch, expected):
    assert list(starts(n, batch)) == expected


def test_what_would_fill_half_of_a_gpu_is_streamed(monkeypatch):
    data = Data(images(23))  # 368 bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (735, 10**6))
    cuda = torch.device("cuda")
    assert not _fits(data, cuda) and _fits(data, CPU)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (736, 10**6))
    assert _fits(data, cuda) and not _fits(Data(Disk(images())), cuda)
