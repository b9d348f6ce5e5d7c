"""The unified encoder-decoder: configuration, layers, and the sequence-to-sequence model."""
