"""Records against protobuf's own reader, and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

from onesug_jax.tasks import records

INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30)
SMALL = st.lists(st.integers(0, 300), max_size=300)
FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=70)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(INTEGERS, SMALL, FLOATS), min_size=1, max_size=5))
def test_protobuf_and_decode_read_the_records(rows):
    columns = dict(zip(("large", "small", "f"), zip(*rows, strict=True), strict=True))
    block = {
        name: (
            np.array(sum(map(list, column), []), np.float32 if name == "f" else np.int64),
            np.array([len(values) for values in column]),
        )
        for name, column in columns.items()
    }
    found = records.encode(block)
    for row, record in zip(rows, found, strict=True):
        features = Example.FromString(record).features.feature
        assert features["large"].int64_list.value == row[0]
        assert features["small"].int64_list.value == row[1]
        assert features["f"].float_list.value == row[2]
        assert Example.FromString(record).SerializeToString(deterministic=True)
    for name, (values, counts) in records.decode(found, block).items():
        assert np.array_equal(values, block[name][0]) and np.array_equal(counts, block[name][1])


def test_decode_reads_records_of_protobuf_in_any_order_of_features():
    example = Example()
    example.features.feature["b"].int64_list.value.extend([5, -1, 1 << 40])
    example.features.feature["skipped"].bytes_list.value.append(b"x" * 500)
    example.features.feature["a"].float_list.value.extend([0.5] * 99)
    data = example.SerializeToString()
    found = records.decode([data, data], ["a", "b"])
    assert found["a"][0].tolist() == [0.5] * 198 and found["a"][1].tolist() == [99, 99]
    assert found["b"][0].tolist() == [5, -1, 1 << 40] * 2 and found["b"][1].tolist() == [3, 3]
    with pytest.raises(ValueError, match="1 records have no feature 'c'"):
        records.decode([data], ["c"])
