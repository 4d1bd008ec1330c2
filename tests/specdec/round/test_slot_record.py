"""A slot's values reach their places, and no other slot's."""

import pytest
import torch

from specdec.round.slot_record import SlotRecord


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_each_write_changes_one_slot(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    ints_FS, lists_SB = torch.zeros(2, 3, dtype=torch.int64, device=device), torch.zeros(3, 4, device=device)
    flags_FS = torch.zeros(1, 3, dtype=torch.bool, device=device)
    record = SlotRecord([(ints_FS, 1), (lists_SB, 0), (flags_FS, 1)])
    for slot, seed in ((2, 2**62 + 1), (0, -5), (2, 7)):  # on a GPU all but the first are replayed
        record.write(slot, [[seed, slot], [0.5, -float("inf")], [True]])
        assert ints_FS[:, slot].tolist() == [seed, slot]
        assert lists_SB[slot, :2].tolist() == [0.5, -float("inf")]
    assert ints_FS.tolist() == [[-5, 0, 7], [0, 0, 2]]
    assert not lists_SB[1].any()
    assert flags_FS.tolist() == [[True, False, True]]
