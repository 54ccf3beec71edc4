"""What two models have in common, and how good one is: pure functions of tensors."""
