"""Reading the mined tables, and errors for wrong files."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.mined import TABLES, file_of, read_table


def test_a_table_has_the_types_of_its_schema(tmp_path):
    narrow = pa.table({"prefix": ["t"], "count": pa.array([2], pa.int32()), "users": [1]})
    pq.write_table(narrow, tmp_path / file_of("prefixes"))
    table = read_table(str(tmp_path), "prefixes")
    assert table.schema == TABLES["prefixes"]
    assert table.to_pylist() == [{"prefix": "t", "count": 2, "users": 1}]


def test_wrong_tables_are_named(tmp_path):
    with pytest.raises(UserError, match="pools.parquet.*no such file.*run mine"):
        read_table(str(tmp_path), "pools")
    pq.write_table(pa.table({"prefix": ["t"]}), tmp_path / "pools.parquet")
    with pytest.raises(UserError, match="pools.parquet.*prefix, query, rank, count"):
        read_table(str(tmp_path), "pools")
    (tmp_path / "pools.parquet").write_text("hello")
    with pytest.raises(UserError, match="pools.parquet.*failed"):
        read_table(str(tmp_path), "pools")
