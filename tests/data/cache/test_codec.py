"""What is stored of a teacher's answer, against float64 arithmetic of NumPy's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from anykd.data.cache import Codec
from anykd.errors import CacheError

LAWS = settings(deadline=None, max_examples=60, derandomize=True)
HALF_STEP = {"float16": 2.0**-11, "float32": 2.0**-24}
"""Largest error of rounding, relative to the value."""


def softmax(logits: Tensor) -> np.ndarray:
    z = logits.double().numpy()
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p, q) of each row, in nats."""
    return np.sum(p * (np.log(p) - np.log(q)), axis=1)


def there_and_back(codec: Codec, logits: Tensor) -> Tensor:
    stored = codec.decode(codec.encode(logits, None))
    assert stored.pooled is None
    assert stored.logits is not None
    assert stored.logits.dtype == torch.float32
    return stored.logits


@st.composite
def scores(draw: st.DrawFn, classes: int | None = None) -> Tensor:
    """Class scores of every size, also equal ones."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 5)), classes or draw(st.integers(2, 40))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 10.0, 1000.0, 1e6]))
    offset = draw(st.sampled_from([0.0, -1e4, 1e6]))
    logits = torch.randn(shape, generator=generator) * scale + offset
    return logits.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


class TestAllScores:
    @LAWS
    @given(scores(), st.sampled_from(["float16", "float32"]))
    def test_are_the_distances_to_the_best_up_to_rounding(self, logits, dtype):
        codec = Codec(num_classes=logits.shape[1], dtype=dtype)
        actual = there_and_back(codec, logits).double().numpy()
        given = logits.double().numpy()
        expected = given - given.max(axis=1, keepdims=True)
        # float32 makes the difference, then it is stored.
        error = (HALF_STEP[dtype] + 2.0**-23) * np.abs(expected) + 2.0**-24
        if dtype == "float16":
            expected = np.maximum(expected, -65504)
        assert np.all(np.abs(actual - expected) <= error)
        assert np.all(actual.max(axis=1) == 0)

    def test_in_float16_give_the_teachers_probabilities(self):
        logits = torch.randn(64, 100) * 4 + 30
        p, q = softmax(logits), softmax(there_and_back(Codec(num_classes=100), logits))
        assert np.max(np.abs(p - q)) < 3e-4
        assert divergence(p, q).max() < 1e-6
        # Near the best one a score is exact to 2^-11 of its distance: what matters loses least.
        raw = softmax(logits.half())
        assert divergence(p, raw).max() > 10 * divergence(p, q).max()

    def test_far_behind_are_stored_as_far_behind_as_can_be(self):
        logits = torch.tensor([[1e5, 0.0, 99_000.0], [-3e38, 3e38, 0.0]])
        expected = [[0.0, -65504.0, -1000.0], [-65504.0, 0.0, -65504.0]]
        assert there_and_back(Codec(num_classes=3), logits).tolist() == expected
        lowest = torch.finfo(torch.float32).min
        wide = there_and_back(Codec(num_classes=3, dtype="float32"), logits)
        assert wide.tolist() == [[0.0, -1e5, -1000.0], [lowest, 0.0, pytest.approx(-3e38)]]

    def test_of_two_classes_by_hand(self):
        codec = Codec(num_classes=2)
        records = codec.encode(torch.tensor([[2.5, 1.0]]), None)
        assert records["scores"].tolist() == [[0.0, -1.5]]
        assert codec.record_bytes == 4


class TestTheBestScores:
    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    @pytest.mark.parametrize("k", [1, 10, 20, 50, 99])
    def test_have_their_probabilities_and_the_others_share_the_rest(self, k, dtype):
        logits = torch.randn(32, 100) * 3 - 7
        p = softmax(logits)
        q = softmax(there_and_back(Codec(num_classes=100, top_k=k, dtype=dtype), logits))
        gap = float((logits.amax(dim=1) - logits.amin(dim=1)).max())
        rtol = HALF_STEP[dtype] * gap + 2e-6
        for row in range(32):
            order = np.argsort(-p[row])
            best, others = order[:k], order[k:]
            np.testing.assert_allclose(q[row, best], p[row, best], rtol=rtol)
            mass = 1 - p[row, best].sum()
            np.testing.assert_allclose(q[row, others].sum(), mass, rtol=rtol)
            np.testing.assert_allclose(q[row, others], mass / (100 - k), rtol=rtol)

    def test_lose_what_the_equal_shares_lose_and_nothing_else(self):
        logits = torch.randn(64, 100) * 3
        p, lost = softmax(logits), []
        for k in (10, 20, 50, 99):
            codec = Codec(num_classes=100, top_k=k, dtype="float32")
            actual = divergence(p, softmax(there_and_back(codec, logits)))
            others = np.sort(p, axis=1)[:, : 100 - k]
            shares = others.sum(axis=1, keepdims=True) / (100 - k)
            expected = np.sum(others * np.log(others / shares), axis=1)
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)
            lost.append(actual.mean())
        assert lost == sorted(lost, reverse=True)
        assert lost[-1] == pytest.approx(0, abs=1e-6)

    def test_by_hand(self):
        # Scores 0, ln 1/2, ln 1/4, ln 1/8, ln 1/8: probabilities 4/8, 2/8, 1/8 and twice 1/16.
        codec = Codec(num_classes=5, top_k=2, dtype="float32")
        logits = torch.tensor([[1 / 8, 1, 1 / 4, 1 / 8, 1 / 2]]).log() + 3
        (record,) = codec.encode(logits, None)
        assert record["classes"].tolist() == [1, 4]
        assert record["scores"].tolist() == pytest.approx([0, math.log(1 / 2)])
        assert record["rest"] == pytest.approx(math.log(1 / 2))
        decoded = there_and_back(codec, logits).exp()
        assert decoded.tolist() == [pytest.approx([1 / 6, 1, 1 / 6, 1 / 6, 1 / 2])]

    @LAWS
    @given(scores(), st.data())
    def test_are_read_back_in_their_order_ahead_of_all_others(self, logits, data):
        classes = logits.shape[1]
        k = data.draw(st.integers(1, classes - 1))
        codec = Codec(num_classes=classes, top_k=k, dtype="float32")
        records = codec.encode(logits, None)
        decoded = codec.decode(records).logits
        assert decoded is not None
        assert decoded.isfinite().all()
        assert (decoded.amax(dim=1) == 0).all()
        # The k-th best has at least the mean of those behind it.
        best = decoded.gather(1, torch.from_numpy(records["classes"].astype(np.int64)))
        assert (decoded <= best[:, -1:] + 1e-5).sum(dim=1).ge(classes - k).all()
        # A stable sort of NumPy's finds the same classes in the same order.
        order = np.argsort(-logits.double().numpy(), axis=1, kind="stable")[:, :k]
        assert records["classes"].tolist() == order.tolist()

    def test_that_are_equal_are_those_of_the_smaller_classes(self):
        logits = torch.zeros(3, 200)
        logits[1, 150:] = 1
        logits[2, 7] = -1
        codec = Codec(num_classes=200, top_k=8)
        classes = codec.encode(logits, None)["classes"]
        assert classes[0].tolist() == [*range(8)]
        assert classes[1].tolist() == [*range(150, 158)]
        assert classes[2].tolist() == [0, 1, 2, 3, 4, 5, 6, 8]
        np.testing.assert_allclose(softmax(there_and_back(codec, logits))[0], 1 / 200, rtol=1e-6)

    @pytest.mark.parametrize("gap", [100.0, 1000.0, 1e5])
    def test_far_ahead_leave_next_to_nothing_but_finite_scores(self, gap):
        logits = torch.zeros(2, 50)
        logits[0, 3] = gap
        logits[1, :2] = gap
        codec = Codec(num_classes=50, top_k=2)
        decoded = there_and_back(codec, logits)
        assert decoded.isfinite().all()
        np.testing.assert_allclose(softmax(decoded), softmax(logits), atol=1e-30)

    def test_of_more_classes_than_16_bits_can_tell_apart(self):
        logits = torch.randn(2, 70_000)
        logits[0, 69_999] = logits[1, 65_536] = 20
        codec = Codec(num_classes=70_000, top_k=1)
        assert codec.record["classes"].base == np.dtype("<u4")
        assert codec.encode(logits, None)["classes"].ravel().tolist() == [69_999, 65_536]
        p, q = softmax(logits), softmax(there_and_back(codec, logits))
        np.testing.assert_allclose(q.max(axis=1), p.max(axis=1), rtol=1e-5)
        assert Codec(num_classes=65_536, top_k=1).record["classes"].base == np.dtype("<u2")

    def test_of_65536_classes_reach_the_last_one(self):
        logits = torch.zeros(1, 65_536)
        logits[0, 65_535] = 9
        codec = Codec(num_classes=65_536, top_k=1)
        assert there_and_back(codec, logits).argmax() == 65_535


class TestPooled:
    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_comes_back_up_to_rounding(self, dtype):
        pooled = torch.randn(8, 5) * 100
        codec = Codec(num_classes=4, pooled_width=5, dtype=dtype)
        actual = codec.decode(codec.encode(torch.randn(8, 4), pooled)).pooled
        assert actual is not None
        torch.testing.assert_close(actual, pooled, rtol=HALF_STEP[dtype], atol=0)

    def test_may_be_all_that_is_stored(self):
        codec = Codec(num_classes=0, pooled_width=5)
        stored = codec.decode(codec.encode(None, torch.ones(2, 5)))
        assert stored.logits is None
        assert stored.pooled is not None
        assert stored.pooled.tolist() == [[1.0] * 5] * 2
        assert codec.record_bytes == 10

    def test_that_float16_cannot_hold_is_refused(self):
        pooled = torch.zeros(4, 5)
        pooled[2, 1] = -70_000
        codec = Codec(num_classes=0, pooled_width=5)
        with pytest.raises(
            CacheError, match=r"row 2: a pooled value of 7e\+04 .* 65,504"
        ) as caught:
            codec.encode(None, pooled)
        assert caught.value.hint == "store float32"
        wide = Codec(num_classes=0, pooled_width=5, dtype="float32")
        assert np.array_equal(wide.encode(None, pooled)["pooled"], pooled.numpy())
        pooled[2, 1] = 65_504
        assert codec.encode(None, pooled)["pooled"].max() == 65_504


class TestEncode:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("top_k", [None, 2])
    def test_refuses_what_is_not_finite_and_names_the_row(self, bad, top_k):
        logits, pooled = torch.randn(5, 4), torch.randn(5, 3)
        codec = Codec(num_classes=4, top_k=top_k, pooled_width=3)
        logits[3, 1] = bad
        with pytest.raises(CacheError, match="row 3: class scores are not finite"):
            codec.encode(logits, pooled)
        pooled[1, 2] = bad
        with pytest.raises(CacheError, match="row 1: pooled values are not finite"):
            codec.encode(torch.randn(5, 4), pooled)

    def test_takes_large_finite_values(self):
        logits = torch.full((2, 4), 3e38)
        assert there_and_back(Codec(num_classes=4), logits).eq(0).all()

    def test_says_what_is_missing_or_has_another_width(self):
        codec = Codec(num_classes=4, pooled_width=3)
        with pytest.raises(CacheError, match=r"4 class scores are to be stored .* got none"):
            codec.encode(None, torch.randn(2, 3))
        with pytest.raises(CacheError, match=r"3 pooled values are to be stored .* got 5"):
            codec.encode(torch.randn(2, 4), torch.randn(2, 5))

    def test_leaves_out_what_is_not_stored(self):
        codec = Codec(num_classes=4)
        logits = torch.randn(2, 4)
        with_pooled = codec.encode(logits, torch.full((2, 3), math.nan))
        assert with_pooled.tobytes() == codec.encode(logits, None).tobytes()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_computes_in_float32_at_least(self, dtype):
        logits = (torch.randn(4, 30) * 10).to(dtype)
        codec = Codec(num_classes=30, top_k=5, dtype="float32")
        actual, expected = codec.encode(logits, None), codec.encode(logits.double(), None)
        assert actual["classes"].tolist() == expected["classes"].tolist()
        np.testing.assert_allclose(actual["scores"], expected["scores"], rtol=1e-6)
        np.testing.assert_allclose(actual["rest"], expected["rest"], rtol=1e-5)

    @pytest.mark.parametrize("top_k", [None, 3])
    def test_gives_a_row_the_same_record_in_any_batch(self, top_k):
        logits = (torch.randn(33, 20) * 2).bfloat16()  # with equal scores
        codec = Codec(num_classes=20, top_k=top_k)
        together = codec.encode(logits, None)
        alone = np.concatenate([codec.encode(row[None], None) for row in logits])
        assert together.tobytes() == alone.tobytes()

    def test_takes_scores_with_a_graph(self):
        codec = Codec(num_classes=3, pooled_width=2)
        codec.encode(torch.randn(2, 3, requires_grad=True), torch.randn(2, 2, requires_grad=True))

    def test_of_no_rows_is_no_records(self):
        codec = Codec(num_classes=5, top_k=2, pooled_width=2)
        records = codec.encode(torch.zeros(0, 5), torch.zeros(0, 2))
        assert len(records) == 0
        stored = codec.decode(records)
        assert stored.logits is not None
        assert stored.logits.shape == (0, 5)


class TestRecord:
    @pytest.mark.parametrize(
        ("options", "num_bytes"),
        [
            ({"num_classes": 100}, 200),
            ({"num_classes": 100, "dtype": "float32"}, 400),
            ({"num_classes": 100, "top_k": 10}, 10 * (2 + 2) + 4),
            ({"num_classes": 100_000, "top_k": 10}, 10 * (4 + 2) + 4),
            ({"num_classes": 1000, "top_k": 20, "pooled_width": 768}, 20 * 4 + 4 + 768 * 2),
            ({"num_classes": 0, "pooled_width": 7, "dtype": "float32"}, 28),
        ],
    )
    def test_is_packed(self, options, num_bytes):
        codec = Codec(**options)
        assert codec.record_bytes == num_bytes
        assert not codec.record.hasobject

    def test_says_what_it_can_serve(self):
        assert Codec(num_classes=5).parts == {"logits"}
        assert Codec(num_classes=0, pooled_width=1).parts == {"pooled"}
        assert Codec(num_classes=5, top_k=1, pooled_width=1).parts == {"logits", "pooled"}
        assert Codec(num_classes=100).summary == "all 100 class scores, float16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "one of num_classes and pooled_width must be above 0"),
        ({"num_classes": 10, "top_k": 10}, "top_k must be below num_classes 10"),
        ({"num_classes": 0, "pooled_width": 4, "top_k": 1}, "top_k must be below num_classes 0"),
        ({"num_classes": 10, "top_k": 0}, "greater than 0"),
        ({"num_classes": -1}, "greater than or equal to 0"),
        ({"num_classes": 10, "dtype": "bfloat16"}, "'float16' or 'float32'"),
    ],
)
def test_what_cannot_be_stored_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Codec(**options)


@pytest.mark.parametrize(
    ("field", "value"), [("classes", 10), ("scores", np.nan), ("rest", np.inf), ("pooled", np.nan)]
)
def test_a_record_that_nobody_wrote_is_refused_in_words(field, value):
    codec = Codec(num_classes=10, top_k=3, pooled_width=2)
    records = codec.encode(torch.randn(4, 10), torch.randn(4, 2))
    codec.decode(records)
    records[field][2] = value
    with pytest.raises(CacheError, match="a record of the cache is damaged") as caught:
        codec.decode(records)
    assert "cache verify" in caught.value.hint
