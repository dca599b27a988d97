"""Training: a student from a Transformer, and the stages that distil into it and tune it.

`stage.teach` runs a recipe. It opens the models and the data (`Stage`), and gives a `TrainTask` (a
`LossModule` and a feed of batches) to the `Trainer`, the one loop of all stages. A training beside the
published stages brings a task of its own.
"""
