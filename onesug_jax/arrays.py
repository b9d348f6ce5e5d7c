"""The named array kinds, each with its shape, and NEG_INF.

Axes: `B` requests, `L` encoder positions, `T` decoder positions, `K` beams, `C` targets of a
request's list, `V` vocabulary, `D` model width, `E` width of the text encoder, `H` heads, `N`
layers, `S` positions of a request's items, `R` relations. Shapes are not checked at run time.
"""

from __future__ import annotations

from jaxtyping import Array, Bool, Float, Int

NEG_INF = -1e9  # score of a masked entry; finite, so that sums stay ordered and gradients are 0

InputTokens = Int[Array, "B L"]  # encoder input ids, 0 = padding
SoftTokens = Float[Array, "B S E"]  # vectors of the soft tokens of a row, in order
TargetTokens = Int[Array, "B T"]  # decoder ids, 0 = padding
SegmentIds = Int[Array, "B S"]  # packed rows: which example a position belongs to, 0 = padding
LossWeights = Float[Array, "B T"]  # 1 where a target counts
TokenLogs = Float[Array, "B T"]  # log-probability of each target token
TokenRows = Float[Array, "B L D"]  # token embeddings, the input of a stack of layers
Encoded = Float[Array, "B L D"]  # encoder output
Logits = Float[Array, "B T V"]  # unnormalised next-token scores
Mask = Bool[Array, "B Q S"]  # True where a query position may attend to a source position
ListTokens = Int[Array, "B C T"]  # decoder ids of C targets that share one request, 0 = padding
ListScores = Float[Array, "B C"]  # one number per target: a log-probability or a reward
ListMask = Bool[Array, "B C"]  # True where the list has a target
AttentionBias = Float[Array, "#B #H Q S"]  # added to attention scores; large negative = masked

BeamTokens = Int[Array, "B K"]  # the token each beam emitted last
BeamScores = Float[Array, "B K"]  # summed or normalised log-probabilities
BeamSequences = Int[Array, "B K T"]  # finished or live token sequences
Ancestry = Int[Array, "B K T"]  # beam slot that wrote position t of beam k's sequence
SelfCache = Float[Array, "N B H T K head_dim"]  # append-only self-attention keys or values
CrossCache = Float[Array, "N B H L head_dim"]  # cross-attention keys or values, shared by beams
ItemIds = Int[Array, "B S"]  # rows of the tables of queries, 0 = padding
ItemVectors = Float[Array, "B S E"]  # unit vectors of items, 0 = padding
ItemWords = Float[Array, "B S W"] | Int[Array, "B S W"]  # hashed words of items, or their weights
Projections = Float[Array, "N E P"]  # learned projections of item vectors
Relations = Float[Array, "B R Q S"]  # similarity of two positions under each relation
