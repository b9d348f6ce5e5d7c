import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesug_jax.errors import UserError
from onesug_jax.tasks.features import FeatureSpec, Featurizer, Request, make_requests
from onesug_jax.tasks.vocabulary import Vocabulary

WORDS = ["red", "shoes", "lego", "duplo", "train set", "phone case", "手机壳"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    folder = str(tmp_path_factory.mktemp("vocab"))
    return Vocabulary.train(iter(WORDS * 3), folder, pieces=330, sid_levels=1, sid_codes=4)


def sections(vocabulary: Vocabulary, ids) -> dict[str, list[str]]:
    """An independent reader of the layout: section name -> its texts, in their order."""
    markers = {vocabulary.prefix_id: ("prefix", 0)}
    for name, numbers in vocabulary.item_ids.items():
        markers |= {i: (name, rank) for rank, i in enumerate(numbers)}
    ids = list(map(int, ids))
    assert ids.pop() == vocabulary.eos_id and vocabulary.eos_id not in ids
    out: dict[str, list[list[int]]] = {}
    for i in ids:
        if i in markers:
            name, rank = markers[i]
            section = out.setdefault(name, [])
            assert rank == len(section) and next(reversed(out)) == name
            section.append([])
        else:
            section[-1].append(i)
    return {name: [vocabulary.decode(x) for x in items] for name, items in out.items()}


def test_sections_have_the_order_of_the_paper(vocabulary):
    v, e = vocabulary, vocabulary.encode
    request = Request("lego ", ["duplo", "red"], ["lego", "train set"], ["female", "30"])
    expected = [v.prefix_id, *e("lego ")]
    related, history, profile = (v.item_ids[name] for name in ("related", "history", "profile"))
    expected += [related[0], *e("lego"), related[1], *e("train set")]
    expected += [history[0], *e("duplo"), history[1], *e("red")]
    last = [profile[0], *e("female"), profile[1], *e("30"), v.eos_id]
    assert Featurizer(v, FeatureSpec()).inputs(request).tolist() == expected + last
    bare = Featurizer(v, FeatureSpec(related=1, history=0, profile=False)).inputs(request)
    assert bare.tolist() == [v.prefix_id, *e("lego "), related[0], *e("lego"), v.eos_id]


def test_empty_sections_have_no_marker_except_the_prefix(vocabulary):
    got = Featurizer(vocabulary, FeatureSpec()).inputs(Request(""))
    assert got.tolist() == [vocabulary.prefix_id, vocabulary.eos_id] and got.dtype == np.int32
    got = Featurizer(vocabulary, FeatureSpec()).inputs(Request("", [""], [""], [""]))
    assert got.tolist() == [vocabulary.prefix_id, vocabulary.eos_id]


texts = st.lists(st.sampled_from([*WORDS, "x" * 9, "red shoes lego"]), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), texts, texts, texts, st.integers(8, 80))
def test_sections_have_as_many_leading_items_as_fit(
    vocabulary, prefix, history, related, profile, length
):
    spec = FeatureSpec(input_length=length)
    ids = Featurizer(vocabulary, spec).inputs(Request(prefix, history, related, profile))
    assert len(ids) <= length
    got = sections(vocabulary, ids)
    assert list(got) == [n for n in ("prefix", "related", "history", "profile") if n in got]
    tail = vocabulary.encode(prefix)[-(length // 2 - 1) :]
    assert ids[1 : 1 + len(tail)].tolist() == tail
    room = length - len(ids)
    lists = {
        "related": related[: spec.related],
        "history": history[: spec.history],
        "profile": profile,
    }
    for name, items in lists.items():
        included = got.get(name, [])
        assert included == items[: len(included)]
        if name != "profile" and len(included) < len(items):
            assert len(vocabulary.encode(items[len(included)])) + 1 > room
    # Items are added alternately: history is ahead only if the next related query did not fit.
    n_related, n_history = (len(got.get(name, [])) for name in ("related", "history"))
    if n_related < len(lists["related"]) and n_history > n_related + 1:
        cost = len(vocabulary.encode(lists["related"][n_related])) + 1
        extra = lists["history"][n_related + 1 : n_history]
        assert cost > room + sum(len(vocabulary.encode(text)) + 1 for text in extra)


def test_items_past_the_last_rank_share_its_marker(vocabulary):
    spec = FeatureSpec(input_length=400, related=40, history=0)
    ids = Featurizer(vocabulary, spec).inputs(Request("", (), ["red"] * 20)).tolist()
    markers = vocabulary.item_ids["related"]
    assert [i for i in ids if i in markers] == markers + [markers[-1]] * (20 - len(markers))


def test_the_soft_token_follows_the_prefix_if_there_is_a_vector(vocabulary):
    v = vocabulary
    featurizer = Featurizer(v, FeatureSpec())
    with_vector = Request("le", (), ["red"], vector=np.ones(3))
    ids = featurizer.inputs(with_vector).tolist()
    assert ids[: 2 + len(v.encode("le"))] == [v.prefix_id, *v.encode("le"), v.soft_id]
    assert v.soft_id not in featurizer.inputs(Request("le", (), ["red"]))
    plain = Featurizer(v, FeatureSpec(soft=False))
    assert v.soft_id not in plain.inputs(with_vector) and plain.soft([with_vector]) is None
    vectors = featurizer.soft([with_vector, Request("x")])
    np.testing.assert_array_equal(vectors, [[[1, 1, 1]], [[0, 0, 0]]])
    assert featurizer.soft([Request("x")]) is None


def test_ids_are_written_and_read_as_tokens(vocabulary):
    featurizer = Featurizer(vocabulary, FeatureSpec())
    tokens = [vocabulary.sid(0, 2), vocabulary.eos_id]
    assert featurizer.id_tokens([2]).tolist() == tokens
    assert featurizer.id_input([2]).tolist() == [vocabulary.ids_id, *tokens]
    assert featurizer.text_input("red").tolist() == [*vocabulary.encode("red"), 1]


def test_requests_are_made_with_all_inputs():
    class Context:
        def related(self, prefixes):
            return [[p, p * 2] for p in prefixes]

        def vectors(self, prefixes):
            return np.array([[len(p)] for p in prefixes])

    made = make_requests(Context(), ["a", "bc"], [["x"], []], [["f"], []])
    first = Request("a", ("x",), ("a", "aa"), ("f",))
    assert made == [first, Request("bc", (), ("bc", "bcbc"), ())]
    assert [request.vector.tolist() for request in made] == [[1], [2]]
    assert make_requests(None, ["a"], [[]], [[]]) == [Request("a")]
    assert make_requests(Context(), [], [], []) == []


def test_targets_end_with_the_end_token(vocabulary):
    featurizer = Featurizer(vocabulary, FeatureSpec(target_length=4))
    whole = vocabulary.encode("red")
    assert featurizer.target("red").tolist() == [*whole[:3], vocabulary.eos_id]
    long = featurizer.target("red shoes lego duplo train")
    assert len(long) == 4 and long[-1] == vocabulary.eos_id and long.dtype == np.int32
    assert long[:3].tolist() == vocabulary.encode("red shoes lego duplo train")[:3]


def test_callers_cannot_change_the_cached_ids(vocabulary):
    featurizer = Featurizer(vocabulary, FeatureSpec())
    request = Request("le", ["red", "red"], ["lego", "red"])
    first = featurizer.inputs(request)
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(featurizer.inputs(request), expected)


def test_impossible_lengths_are_user_errors():
    with pytest.raises(UserError, match="input_length=4"):
        FeatureSpec(input_length=4)
    with pytest.raises(UserError, match="history=-1"):
        FeatureSpec(history=-1)
