"""Data sets as uint8 tensors, splits, and batched augmentation on the device."""
