"""Writing the list: beam search over the encoder-decoder, and the sets it may be held to."""
