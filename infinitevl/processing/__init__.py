"""Pictures, videos and text on their way to tensors."""
