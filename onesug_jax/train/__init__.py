"""Training of any model: mesh, optimizer, jitted update, loop, checkpoints and reports.

The caller passes a `train_state.Stage`: pre-training, alignment, a text encoder or a quantiser.
"""
