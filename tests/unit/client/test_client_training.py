"""What trainers read: AReaL's arrays and slime's samples, made of an export, in both of its styles."""

from __future__ import annotations

import builtins
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.client import token_span
from roost.client.training import (
    AREAL_FIELDS,
    SAMPLE_FIELDS,
    Assembler,
    Exported,
    areal_rows,
    pad_rows,
    slime_samples,
)
from roost.v1 import trajectory_service_pb2 as t
from roost.v1 import types_pb2 as types

COMMITTED, ABORTED = types.RECORD_STATUS_COMMITTED, types.RECORD_STATUS_ABORTED
SUPERSEDED, PROVISIONAL = types.RECORD_STATUS_SUPERSEDED, types.RECORD_STATUS_PROVISIONAL


def record(
    turn: int, offset: int, ids: list[int], *, status: Any = COMMITTED, reward: float | None = None, **values: Any
) -> types.Record:
    span = {name: values.pop(name) for name in ("loss_mask", "logprobs", "weight_versions") if name in values}
    made = types.Record(turn=turn, status=status, record=types.RecordInput(**values))
    # As the server exports it: there is always a mask.
    span.setdefault("loss_mask", [int(status == COMMITTED)] * len(ids))
    made.record.tokens.CopyFrom(token_span(ids, offset=offset, **span))
    if reward is not None:
        made.discounted_reward = reward
    return made


def exported(*records: types.Record, context: list[int] | None = None) -> Exported:
    """What the parts of one trajectory become."""
    whole = Assembler()
    head = t.ExportTrajectoriesResponse(
        session=types.Session(session_id="s1", labels={"env": "x"}),
        trajectory=t.Trajectory(trajectory_id="u-1", session_id="s1"),
    )
    if context:
        head.context.CopyFrom(token_span(context))
    assert whole.add(head) is None
    for one in records:
        assert whole.add(t.ExportTrajectoriesResponse(records=[one])) is None
    done = whole.add(t.ExportTrajectoriesResponse(last=True))
    assert done is not None
    return done


TWO_TURNS = exported(
    record(
        *(1, 0, [10, 11, 12]),
        loss_mask=[0, 1, 1],
        logprobs=[0, -0.5, -0.25],
        weight_versions=[(-1, 1), (3, 2)],
        reward=0.5,
        finish_reason="stop",
    ),
    record(
        *(2, 3, [13, 14]),
        loss_mask=[0, 1],
        logprobs=[0, -1],
        weight_versions=[(-1, 1), (4, 1)],
        reward=1.0,
        finish_reason="length",
    ),
)


def test_areal_rows_have_areals_fields_types_and_shapes() -> None:
    rows = areal_rows(TWO_TURNS)
    assert [tuple(row) for row in rows] == [AREAL_FIELDS] * 2
    for row, length in zip(rows, (3, 5), strict=True):
        assert {name: array.shape for name, array in row.items()} == dict.fromkeys(AREAL_FIELDS, (1, length)) | {
            "rewards": (1,)
        }
        assert {name: array.dtype.name for name, array in row.items()} == {
            "input_ids": "int32",
            "loss_mask": "int32",
            "logprobs": "float32",
            "versions": "int32",
            "attention_mask": "bool",
            "rewards": "float32",
        }
    second = rows[1]
    assert second["input_ids"].tolist() == [[10, 11, 12, 13, 14]]
    # What the first turn said is trained on in its own row.
    assert second["loss_mask"].tolist() == [[0, 0, 0, 0, 1]]
    assert second["versions"].tolist() == [[-1, -1, -1, -1, 4]]
    assert second["logprobs"].tolist() == [[0, 0, 0, 0, -1]]
    assert [row["rewards"].tolist() for row in rows] == [[0.5], [1.0]]


def test_a_batch_is_padded_at_its_end_and_loads_from_a_file(tmp_path: Any) -> None:
    batch = pad_rows(areal_rows(TWO_TURNS))
    path = tmp_path / "batch.npz"
    np.savez(path, **batch)
    with np.load(path) as loaded:
        assert sorted(loaded.files) == sorted(AREAL_FIELDS)
        assert loaded["input_ids"].tolist() == [[10, 11, 12, 0, 0], [10, 11, 12, 13, 14]]
        assert loaded["attention_mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
        assert loaded["rewards"].tolist() == [0.5, 1.0]
    empty = pad_rows([])
    assert {name: array.shape for name, array in empty.items()} == dict.fromkeys(AREAL_FIELDS, (0, 0)) | {
        "rewards": (0,)
    }


def test_samples_have_slimes_fields_and_are_json() -> None:
    samples = slime_samples(TWO_TURNS, index=7)
    assert [tuple(sample) for sample in samples] == [SAMPLE_FIELDS] * 2
    assert json.loads(json.dumps(samples)) == samples
    first, second = samples
    assert (first["index"], second["index"]) == (7, 8)
    assert (first["status"], second["status"]) == ("completed", "truncated")
    assert (first["tokens"], first["response_length"], first["loss_mask"]) == ([10, 11, 12], 2, [1, 1])
    assert (second["response_length"], second["loss_mask"], second["rollout_log_probs"]) == (1, [1], [-1.0])
    assert (first["weight_versions"], second["weight_versions"]) == (["3"], ["4"])
    assert (first["reward"], second["reward"]) == (0.5, 1.0)
    assert second["metadata"] == {
        "session_id": "s1",
        "trajectory_id": "u-1",
        "first_turn": 2,
        "last_turn": 2,
        "labels": {"env": "x"},
    }


def test_a_sample_fills_slimes_own_class() -> None:
    """The fields that slime's Sample.from_dict takes, with the conditions its trainer puts on them."""
    for sample in slime_samples(TWO_TURNS):
        assert set(sample) <= SLIME_SAMPLE_FIELDS
        assert sample["status"] in ("pending", "completed", "truncated", "aborted", "failed")
        assert sample["response_length"] == len(sample["loss_mask"]) == len(sample["rollout_log_probs"])
        assert sample["response_length"] <= len(sample["tokens"])
        assert all(type(version) is str for version in sample["weight_versions"])


# Of slime's Sample (slime/utils/types.py), which miles shares.
SLIME_SAMPLE_FIELDS = {
    "group_index",
    "index",
    "prompt",
    "tokens",
    "multimodal_inputs",
    "multimodal_train_inputs",
    "response",
    "response_length",
    "label",
    "reward",
    "loss_mask",
    "weight_versions",
    "rollout_log_probs",
    "rollout_routed_experts",
    "remove_sample",
    "teacher_log_probs",
    "status",
    "metadata",
    "generate_function_path",
    "train_metadata",
    "session_id",
    "non_generation_time",
    "spec_info",
    "prefix_cache_info",
}


def test_the_aborted_tail_is_a_row_that_is_not_trained_on() -> None:
    one = exported(record(1, 0, [1, 2]), record(2, 2, [3], status=ABORTED, finish_reason="abort"))
    rows = one.rows()
    assert [(list(row.tokens), list(row.loss_mask), row.aborted) for row in rows] == [
        ([1, 2], [1, 1], False),
        ([1, 2, 3], [0, 0, 0], True),
    ]
    assert [sample["status"] for sample in slime_samples(one)] == ["completed", "aborted"]
    assert slime_samples(one)[1]["response_length"] == 0


def test_what_was_not_kept_is_no_row() -> None:
    one = exported(
        record(1, 0, [1], status=SUPERSEDED), record(1, 0, [2], status=PROVISIONAL), record(1, 0, [3], reward=1)
    )
    assert [list(row.tokens) for row in one.rows()] == [[3]]


def test_what_int32_does_not_hold_is_refused_and_rows_without_tokens_are_left_out() -> None:
    for one in (record(1, 0, [1 << 31]), record(1, 0, [1], weight_versions=[(1 << 31, 1)])):
        with pytest.raises(ValueError, match=r"u-1.*int32"):
            areal_rows(exported(one))
    assert areal_rows(exported(record(1, 0, [(1 << 31) - 1])))[0]["input_ids"].tolist() == [[(1 << 31) - 1]]
    assert areal_rows(exported(types.Record(turn=1, status=ABORTED))) == []


def test_a_trajectory_begins_with_what_it_builds_on() -> None:
    one = exported(record(5, 3, [4]), record(6, 1, [9, 9]), context=[1, 2, 3])
    assert [list(row.tokens) for row in one.rows()] == [[1, 2, 3, 4], [1, 9, 9]]
    assert [list(row.loss_mask) for row in one.rows()] == [[0, 0, 0, 1], [0, 1, 1]]
    # A turn without tokens says nothing that a model could learn; it still has its reward.
    plain = exported(types.Record(turn=1, status=COMMITTED, discounted_reward=2.0), context=[1, 2])
    assert [(list(row.tokens), row.reward) for row in plain.rows()] == [([1, 2], 2.0)]


def row_part(segment: int, offset: int, ids: list[int], **values: Any) -> t.ExportTrajectoriesResponse:
    span = token_span(
        ids,
        offset=offset,
        loss_mask=[1] * len(ids),
        logprobs=[-1.0] * len(ids),
        weight_versions=[(2, len(ids))],
    )
    return t.ExportTrajectoriesResponse(rows=[t.TrajectoryRow(segment=segment, tokens=span, **values)])


def test_segments_are_rows() -> None:
    whole = Assembler()
    for part in (
        row_part(1, 0, [1, 2], first_turn=1, last_turn=2),
        row_part(1, 2, [3], first_turn=1, last_turn=2, last=True, reward=0.5, finish_reason="length"),
        row_part(2, 0, [7], first_turn=3, last_turn=3, last=True, aborted=True, finish_reason="abort"),
    ):
        assert whole.add(part) is None
    one = whole.add(t.ExportTrajectoriesResponse(last=True))
    assert one is not None
    rows = one.rows()
    assert [(list(row.tokens), row.first_turn, row.last_turn, row.reward, row.aborted) for row in rows] == [
        ([1, 2, 3], 1, 2, 0.5, False),
        ([7], 3, 3, None, True),
    ]
    assert [list(row.versions) for row in rows] == [[2, 2, 2], [2]]
    assert [sample["status"] for sample in slime_samples(one)] == ["truncated", "aborted"]
    assert [row["rewards"].tolist() for row in areal_rows(one)] == [[0.5], [0.0]]


Spans = st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 1), max_size=5)), min_size=1, max_size=8)


@given(Spans)
def test_each_row_is_what_its_turn_saw_and_trains_on_its_own_part(spans: list[tuple[int, list[int]]]) -> None:
    line: list[int] = []
    expected, records, fresh = [], [], 0
    for turn, (back, mask) in enumerate(spans, 1):
        offset = max(len(line) - back, 0)
        ids = list(range(fresh, fresh + len(mask)))
        fresh += len(mask)
        line = line[:offset] + ids
        expected.append((line, [0] * offset + mask))
        records.append(record(turn, offset, ids, loss_mask=mask))
    one = exported(*records)
    assert [(list(row.tokens), list(row.loss_mask)) for row in one.rows()] == expected
    for arrays in areal_rows(one):
        lengths = {arrays[name].shape[1] for name in AREAL_FIELDS if name != "rewards"}
        assert len(lengths) == 1


def test_without_numpy_arrays_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "numpy":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"roost\[train\]"):
        areal_rows(TWO_TURNS)
    assert len(slime_samples(TWO_TURNS)) == 2
