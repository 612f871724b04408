"""The operations on a GPU, in Triton: one launch for all tensors of a call, one pass over memory."""
