"""The stages of training, each as one loss over a batch."""
