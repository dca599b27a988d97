"""Teaching an InfiniteVL: batches, kernels with gradients, the supervised loop."""
