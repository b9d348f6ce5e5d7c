"""The oracle's probabilities equal those of the simulation, and no lists are better than its own.

References: a slow enumeration in plain Python, and the same request simulated many times.
"""

from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from onesug_jax.evaluate import ceiling
from onesug_jax.logs.simulate import prefixes, searches, simulate
from onesug_jax.logs.simulate.oracle import Oracle
from onesug_jax.logs.simulate.outcomes import Trade
from onesug_jax.logs.simulate.people import Behaviour, make_people, make_visits
from onesug_jax.logs.simulate.rates import Rates
from onesug_jax.logs.simulate.table import CEILING
from onesug_jax.logs.simulate.timeline import HOURS, Timeline, make_popularity
from onesug_jax.logs.simulate.world import build_world

DAYS = 8
BEHAVIOUR = Behaviour(typo_share=0.05, refine_share=0.7)


class Shop:
    """A tiny shop with a log of searches."""

    def __init__(self):
        rng = np.random.default_rng(5)
        self.world = build_world(rng, queries=None, language="en", distinct=250)
        self.people = make_people(rng, self.world, 30)
        self.visits = make_visits(rng, 30, 600, DAYS, BEHAVIOUR)
        timeline = Timeline(launches=1.0, bursts=3.0, group_bursts=1.0)
        self.popularity = make_popularity(rng, self.world, timeline, DAYS)
        self.searched = searches.make_searches(
            rng, self.world, self.people, self.visits, self.popularity, BEHAVIOUR
        )
        trade = Trade.fit(self.world, self.people, self.visits.user, self.searched, BEHAVIOUR)
        self.oracle = Oracle(self.popularity, trade, self.visits, BEHAVIOUR)

    def rows(self):
        """First searches, openings of later visits, and later searches of a visit."""
        visits = self.visits
        first = np.r_[True, visits.user[1:] != visits.user[:-1]]
        old = np.r_[False, False, ~first[1:-1] & ~first[:-2]]
        picks = [np.flatnonzero(first)[3:5], np.flatnonzero(visits.opening & old)[[4, 40]]]
        return np.concatenate([*picks, np.flatnonzero(~visits.opening)[[7, 90, 150]]])

    def state(self, row, times=1):
        rows = np.full(times, row)
        log_rate, shelf_log = self.popularity.of_day(int(self.visits.hour[row]) // HOURS)
        rates = Rates(self.world, log_rate)
        state = searches.state_of(self.people, self.visits, self.searched, rows)
        parts = searches.make_parts(self.world, rates, shelf_log, state, BEHAVIOUR)
        return rates, state, parts

    def chances(self, row):
        """p(query | state) of every query, as the oracle computes it: [Q]."""
        rates, state, parts = self.state(row)
        total = searches.totals(self.world, rates, state, parts, BEHAVIOUR)
        query = np.arange(len(self.world.queries))
        return searches.chance(self.world, rates, state, parts, total, 0 * query, query, BEHAVIOUR)

    def slow_chances(self, row):
        """The same in plain Python, from the description of `searches`."""
        world, people, b = self.world, self.people, BEHAVIOUR
        user, hour = self.visits.user[row], self.visits.hour[row]
        log_rate, shelf_log = self.popularity.of_day(hour // HOURS)
        now, shelf_now = log_rate[hour % HOURS], shelf_log[hour % HOURS]
        earlier = [r for r in range(row) if self.visits.user[r] == user]
        memory = [self.searched[r] for r in reversed(earlier)][:16]
        before = memory[0] if memory else None
        words = [{w for w in row if w >= 0} for row in world.words_of.tolist()]
        favourites = people.words[user].tolist()
        result = np.zeros(len(words))
        left = 1.0

        def add(share, members, taste=False, refine=False):
            nonlocal left
            weights = {}
            for q in members:
                if now[q] == -np.inf:
                    continue
                weight = now[q] + np.log(world.leaning_pull[people.gender[user], q])
                if taste and words[q] & set(favourites):
                    weight += b.taste
                if refine and q == before:
                    weight -= b.other
                elif refine and len(words[q]) > len(words[before]):
                    weight += b.longer
                weights[q] = np.exp(weight)
            if weights:
                left -= share
                for q, weight in weights.items():
                    result[q] += share * weight / sum(weights.values())

        holding = lambda word: [q for q in range(len(words)) if word in words[q]]  # noqa: E731
        on = lambda shelf: np.flatnonzero(world.shelf == shelf).tolist()  # noqa: E731
        if self.visits.opening[row]:
            missing = b.return_share
            for back, query in enumerate(memory):
                share = b.return_share * 0.18 * 0.82**back
                result[query] += share
                missing, left = missing - share, left - share
            for word in favourites:
                add((b.word_share + missing) / len(favourites), holding(word))
            shelves = people.shelves[user]
            odds = [0.5**rank * np.exp(shelf_now[shelf]) for rank, shelf in enumerate(shelves)]
            for shelf, one in zip(shelves, odds, strict=True):
                add(b.shelf_share * one / sum(odds), on(shelf), taste=True)
        else:
            for word in words[before]:
                share = b.refine_share / len(words[before])
                add(share, holding(word), taste=True, refine=True)
            add(b.stay_share, on(world.shelf[before]), taste=True)
        add(left, range(len(words)))
        return result


@pytest.fixture(scope="module")
def shop():
    return Shop()


def test_probabilities_sum_to_one_and_equal_a_slow_enumeration(shop):
    for row in shop.rows():
        chances = shop.chances(row)
        assert chances.sum() == pytest.approx(1.0, abs=1e-9)
        np.testing.assert_allclose(chances, shop.slow_chances(row), atol=1e-9)


def test_random_choices_have_these_probabilities(shop):
    """By a chi-squared statistic over the queries with five expected draws or more."""
    rng, times = np.random.default_rng(6), 4000
    later = np.flatnonzero(~shop.visits.opening)
    for row in [*shop.rows(), *later[:: len(later) // 8]]:
        rates, state, parts = shop.state(row, times)
        drawn = searches.choose(rng, shop.world, rates, state, parts, BEHAVIOUR)
        found = np.bincount(drawn, minlength=len(shop.world.queries))
        expected = times * shop.chances(row)
        assert (found[expected == 0] == 0).all()
        often = expected >= 5
        rest = [found[~often].sum()], [expected[~often].sum() + 1e-9]
        found, expected = np.r_[found[often], rest[0]], np.r_[expected[often], rest[1]]
        use = expected >= 5
        statistic = ((found - expected)[use] ** 2 / expected[use]).sum()
        assert statistic < use.sum() + 5 * (2 * use.sum()) ** 0.5


def test_prefix_probabilities_sum_to_one_and_equal_the_frequencies(shop):
    rng, times, texts = np.random.default_rng(7), 20_000, shop.world.queries
    for query in (0, 17, len(texts) - 1):
        drawn = Counter(
            prefixes.draw_prefixes(rng, shop.world, np.full(times, query), BEHAVIOUR.typo_share)
        )
        # All possible prefixes: beginnings and their swaps.
        possible = {texts[query][:n] for n in range(1, len(texts[query]) + 1)}
        possible |= {t for p in possible for t, _ in prefixes.origins(p, BEHAVIOUR.typo_share)}
        assert set(drawn) <= possible
        names = sorted(possible)
        owner, queries, chances = shop.oracle.candidates(names)
        mask = queries == query
        chance = np.bincount(owner[mask], chances[mask], minlength=len(names))
        assert chance.sum() == pytest.approx(1.0, abs=1e-9)
        found = np.array([drawn[name] for name in names])
        assert (np.abs(found - times * chance) < 5 * np.sqrt(times * chance) + 5).all()


def test_lists_have_the_most_frequent_queries_of_a_repeated_request(shop):
    """Draw query and prefix of one request many times, and count the queries of a prefix."""
    rng, times = np.random.default_rng(8), 20_000
    for row in shop.rows()[[2, 4]]:
        rates, state, parts = shop.state(row, times)
        drawn = searches.choose(rng, shop.world, rates, state, parts, BEHAVIOUR)
        typed = np.array(prefixes.draw_prefixes(rng, shop.world, drawn, BEHAVIOUR.typo_share))
        for prefix, count in Counter(typed.tolist()).most_common(4):
            best = shop.oracle.best(np.array([row]), [prefix], shop.searched)
            found = np.bincount(drawn[typed == prefix], minlength=len(shop.world.queries))
            mask = best.queries[0] >= 0
            listed, chances = best.queries[0][mask], best.chances[0][mask]
            assert (np.diff(chances) <= 0).all() and chances.sum() <= 1 + 1e-9
            assert (
                np.abs(found[listed] - count * chances) < 5 * np.sqrt(count * chances) + 5
            ).all()
            assert found[listed].sum() == pytest.approx(count * chances.sum(), abs=5 + count**0.5)


def test_a_list_does_not_depend_on_the_answer_or_later_searches(shop):
    row = int(shop.rows()[3])
    changed = shop.searched.copy()
    changed[row:] = 0
    one, other = (shop.oracle.best(np.array([row]), ["b"], s) for s in (shop.searched, changed))
    np.testing.assert_array_equal(one.queries, other.queries)


def test_orders_have_a_list_of_their_own(shop):
    rows = np.flatnonzero(shop.visits.opening)[:100]
    best = shop.oracle.best(rows, ["s"] * 100, shop.searched)
    assert (best.queries != best.for_orders).any()
    for listed, ordered in zip(best.queries, best.for_orders, strict=True):
        assert (listed >= 0).sum() == (ordered >= 0).sum()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    simulate(str(folder), requests=16_000, days=14, dev_days=2, test_days=1, seed=1)
    tables = [pq.read_table(folder / f"{name}.parquet") for name in ("train", "dev", "test")]
    rows = [row for table in tables for row in table.to_pylist()]
    best = pq.read_table(folder / CEILING, columns=["request_id", "chances"]).to_pylist()
    return rows, tables[0].num_rows, ceiling.load(str(folder)), best


def reciprocal(lists, rows):
    return np.array(
        [
            1 / (1 + texts.index(row["query"])) if row["query"] in texts else 0.0
            for texts, row in zip(lists, rows, strict=True)
        ]
    )


def completions(rows, first, half_life, *, future=False, boost=0.0):
    """Lists of 16 for rows[first:] by counts that halve every `half_life` days (of age).

    `future` counts other users' searches before and after the request, which no service can.
    """
    texts = sorted({row["query"] for row in rows})
    number = {text: place for place, text in enumerate(texts)}
    alphabet = prefixes.Alphabet(texts)
    spans = alphabet.ranges([row["prefix"] for row in rows])
    query = np.array([number[row["query"]] for row in rows])
    day = np.array([row["timestamp_ms"] for row in rows]) / 86_400_000
    users = np.unique([row["user_id"] for row in rows], return_inverse=True)[1]
    history, lists = defaultdict(list), []
    for at in range(len(rows)):
        if at >= first:
            age = day[at] - day
            use = users != users[at] if future else np.arange(len(rows)) < at
            weight = use * 0.5 ** (np.abs(age) / half_life)
            low, high = spans[at]
            inside = (query >= low) & (query < high)
            counts = np.bincount(query[inside] - low, weight[inside], minlength=high - low)
            for earlier in history[users[at]][-16:]:
                if low <= earlier < high:
                    counts[earlier - low] = (counts[earlier - low] + 1e-3) * np.exp(boost)
            order = np.argsort(-counts, kind="stable")[:16]
            lists.append([texts[low + i] for i in order if counts[i] > 0])
        history[users[at]].append(query[at])
    return lists


@pytest.mark.long
@pytest.mark.parametrize(
    "rival",
    [
        {"half_life": 1e6},
        {"half_life": 1.5},
        {"half_life": 1.5, "boost": 2.0},
        {"half_life": 0.7, "boost": 2.0, "future": True},
    ],
    ids=str,
)
def test_no_rival_is_better_beyond_chance(log, rival):
    """By paired differences over all rows, and of the lists for orders over rows with an order."""
    rows, first, best, _ = log
    held = rows[first:]
    order = np.array([bool(row["ordered_items"]) for row in held])
    other = reciprocal(completions(rows, first, **rival), held)
    for orders, where in ((False, order | True), (True, order)):
        own = reciprocal([best[orders][row["request_id"]] for row in held], held)
        ahead = (other - own)[where]
        assert ahead.mean() < 2 * ahead.std() / len(ahead) ** 0.5
        assert own[where].mean() > other[where].mean()


def test_the_probabilities_of_the_ceiling_are_calibrated(log):
    """Expected and found reciprocal ranks agree in each quarter of the rows."""
    rows, first, (lists, _), best = log
    chances = {row["request_id"]: row["chances"] for row in best}
    ids = [row["request_id"] for row in rows[first:]]
    found = reciprocal([lists[name] for name in ids], rows[first:])
    expected = np.array([sum(p / n for n, p in enumerate(chances[name], 1)) for name in ids])
    for part in np.array_split(np.argsort(expected), 4):
        spread = found[part].std() / len(part) ** 0.5
        assert abs(found[part].mean() - expected[part].mean()) < 4 * spread + 0.002


@pytest.mark.long
def test_recent_counts_are_better_only_if_time_has_effects(log, tmp_path):
    """Counts of the last days against counts of all time, as in real logs."""
    rows, first, *_ = log
    held = rows[first:]
    seen = {row["query"] for row in rows[:first]}
    assert 0.02 < np.mean([row["query"] not in seen for row in held]) < 0.15
    still = dict.fromkeys(vars(Timeline()), 0.0)
    simulate(
        str(tmp_path), requests=16_000, days=14, dev_days=2, seed=1, timeline=Timeline(**still)
    )
    tables = [pq.read_table(tmp_path / f"{name}.parquet") for name in ("train", "dev")]
    calm = [row for table in tables for row in table.to_pylist()]
    gains = []
    for log_rows, begin in ((rows, first), (calm, tables[0].num_rows)):
        truth = log_rows[begin:]
        ever, lately = (
            reciprocal(completions(log_rows, begin, half_life), truth) for half_life in (1e6, 1.5)
        )
        gains.append(lately.mean() - ever.mean())
    assert gains[0] > 0.004 > gains[1]
