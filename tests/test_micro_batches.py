"""A batch that does not fit is taken in parts, each image once and in its order."""

import pytest
import torch

from tune_inat.micro_batches import MicroBatches, StepTooLargeError, is_out_of_memory


class Memory:
    """Room for so many images; notes which ones were taken."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken: list[int] = []

    def take(self, part: slice) -> None:
        images = list(range(part.start, part.stop))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.taken += images

    def undo(self) -> None:
        self.taken.clear()


@pytest.mark.parametrize(("n_images", "room", "n_parts"), [(8, 8, 1), (8, 7, 2), (9, 3, 4), (33, 1, 33)])
def test_each_image_is_taken_once_whatever_fits(n_images: int, room: int, n_parts: int) -> None:
    memory, batches = Memory(room), MicroBatches()
    batches.run(n_images, memory.take, undo=memory.undo)
    assert memory.taken == list(range(n_images))
    assert batches.n_parts == n_parts


def test_later_batches_are_split_at_once() -> None:
    memory, batches = Memory(2), MicroBatches()
    batches.run(8, memory.take, undo=memory.undo)
    sizes: list[int] = []
    batches.run(6, lambda part: sizes.append(part.stop - part.start))
    assert sizes == [1, 2, 1, 2]


def test_smallest_parts_that_do_not_fit_end_the_trial_with_the_reason() -> None:
    memory = Memory(1)
    with pytest.raises(StepTooLargeError, match=r"8 images .* not even 2 at a time \(CUDA out of memory"):
        MicroBatches(smallest=2).run(8, memory.take, undo=memory.undo)


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    def fail(part: slice) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        MicroBatches().run(8, fail)
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
