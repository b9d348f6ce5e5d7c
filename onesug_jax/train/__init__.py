"""The engine room: mesh, optimizer, jitted update, loop, checkpoints, reports. Knows no model.

A step of the method (pre-training, alignment, a contrastive encoder, a quantiser) is handed in as
a `train_state.Stage`; everything here is the same for all of them.
"""
