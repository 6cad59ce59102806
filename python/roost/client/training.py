"""An export in the shapes that trainers read: AReaL's tensors, slime's and miles's samples.

Field lists are those of AReaL's `to_tensor_dict` (one row: input_ids, loss_mask, logprobs, versions, attention_mask of
shape [1, n], rewards of shape [1]) and of slime's `Sample`, which miles shares. Rewards are the discounted ones of the
export. Arrays need numpy (`pip install "roost[train]"`); samples need nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from roost.client._convert import unpack_f32, unpack_u32
from roost.v1 import trajectory_service_pb2, types_pb2

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]

Style = Literal["individual", "concat"]

AREAL_FIELDS = ("input_ids", "loss_mask", "logprobs", "versions", "attention_mask", "rewards")
SAMPLE_FIELDS = (
    "group_index",
    "index",
    "prompt",
    "tokens",
    "response",
    "response_length",
    "label",
    "reward",
    "loss_mask",
    "weight_versions",
    "rollout_log_probs",
    "status",
    "metadata",
)
NO_VERSION = -1  # of a token that no engine of a known version sampled


@dataclass
class Row:
    """What a model saw and said: tokens, and for each of them whether it is trained on (1 or 0), its log-probability
    (0.0 where none is known) and the weight version that sampled it (-1 where none did). `reward`: the discounted one
    of its last COMMITTED turn, None if it has none. `aborted`: its last turn is the ABORTED tail. `finish_reason`: why
    its last turn ended."""

    tokens: array[int] = field(default_factory=lambda: array("I"))
    loss_mask: bytearray = field(default_factory=bytearray)
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    versions: array[int] = field(default_factory=lambda: array("q"))
    first_turn: int = 0
    last_turn: int = 0
    reward: float | None = None
    aborted: bool = False
    finish_reason: str = ""

    def append(self, span: types_pb2.TokenSpan, loss_mask: bytes) -> None:
        """Add a span's tokens at the end; `loss_mask` has one byte a token."""
        ids = unpack_u32(span.token_ids)
        self.tokens.extend(ids)
        self.loss_mask.extend(loss_mask)
        self.logprobs.extend(unpack_f32(span.logprobs) if span.logprobs else array("f", bytes(4 * len(ids))))
        runs = [(run.version, run.count) for run in span.weight_versions] or [(NO_VERSION, len(ids))]
        for version, count in runs:
            self.versions.extend([version] * count)

    def context(self, offset: int) -> Row:
        """The first `offset` tokens as what another row begins with: nothing of it is trained on."""
        ids = self.tokens[:offset]
        count = len(ids)
        versions = array("q", [NO_VERSION]) * count
        return Row(ids, bytearray(count), array("f", bytes(4 * count)), versions)


@dataclass
class Exported:
    """One trajectory of an export, whole. `records` in INDIVIDUAL style, `parts` of rows in CONCAT style; `context`:
    the tokens that its first turn builds on."""

    session: types_pb2.Session = field(default_factory=types_pb2.Session)
    trajectory: trajectory_service_pb2.Trajectory = field(default_factory=trajectory_service_pb2.Trajectory)
    records: list[types_pb2.Record] = field(default_factory=list)
    parts: list[trajectory_service_pb2.TrajectoryRow] = field(default_factory=list)
    context: array[int] = field(default_factory=lambda: array("I"))

    @property
    def trajectory_id(self) -> str:
        """Its id, for `ack_trajectories`."""
        return self.trajectory.trajectory_id

    def rows(self) -> list[Row]:
        """Its rows: in CONCAT style one a segment, else one a record that is COMMITTED or the ABORTED tail, each with
        all that its turn saw."""
        return list(_segments(self.parts)) if self.parts else list(_turns(self.records, self.context))


class Assembler:
    """Puts the parts of an export together."""

    def __init__(self) -> None:
        self._open: Exported | None = None

    def add(self, part: trajectory_service_pb2.ExportTrajectoriesResponse) -> Exported | None:
        """Take the next part; returns the trajectory that it completes."""
        if self._open is None:
            self._open = Exported(part.session, part.trajectory)
        one = self._open
        one.records.extend(part.records)
        one.parts.extend(part.rows)
        if part.HasField("context"):
            one.context.extend(unpack_u32(part.context.token_ids))
        if not part.last:
            return None
        self._open = None
        return one


def areal_rows(exported: Exported) -> list[Arrays]:
    """The rows of a trajectory as AReaL's workflows return them: a dict of numpy arrays for each. Rows without a token
    are left out: there is nothing to train on. ValueError for token ids and versions that 32 bits with a sign do not
    hold."""
    np = _numpy()

    def int32(name: str, values: array[int]) -> Any:
        largest = max(values, default=0)
        if largest >= 1 << 31:
            raise ValueError(f"{name} of trajectory {exported.trajectory_id}: {largest} does not fit into int32")
        return np.array(values, dtype=np.int64).astype(np.int32)[None, :]

    return [
        {
            "input_ids": int32("input_ids", row.tokens),
            "loss_mask": np.frombuffer(bytes(row.loss_mask), dtype=np.uint8).astype(np.int32)[None, :],
            "logprobs": np.array(row.logprobs, dtype=np.float32)[None, :],
            "versions": int32("versions", row.versions),
            "attention_mask": np.ones((1, len(row.tokens)), dtype=np.bool_),
            "rewards": np.array([row.reward or 0.0], dtype=np.float32),
        }
        for row in exported.rows()
        if row.tokens
    ]


def pad_rows(rows: Sequence[Arrays]) -> Arrays:
    """Rows as one batch: each field padded at its end to the longest row, attention_mask False there."""
    np = _numpy()
    longest = max((row["input_ids"].shape[1] for row in rows), default=0)

    def stack(name: str) -> Any:
        if not rows:
            return np.zeros((0,) if name == "rewards" else (0, 0))
        if name == "rewards":
            return np.concatenate([row[name] for row in rows])
        return np.concatenate([np.pad(row[name], ((0, 0), (0, longest - row[name].shape[1]))) for row in rows])

    return {name: stack(name) for name in AREAL_FIELDS}


def slime_samples(exported: Exported, index: int = 0) -> list[dict[str, Any]]:
    """The rows of a trajectory as `Sample.to_dict()` of slime and miles writes them. `index`: that of the first.

    A sample's response starts at the first token that is trained on; loss_mask and rollout_log_probs cover it. Roost
    does not know text: prompt and response are empty, tokens are the truth.
    """
    samples = []
    for number, row in enumerate(exported.rows()):
        start = row.loss_mask.find(1)
        start = len(row.tokens) if start < 0 else start
        status = "aborted" if row.aborted else "truncated" if row.finish_reason == "length" else "completed"
        samples.append(
            {
                "group_index": None,
                "index": index + number,
                "prompt": "",
                "tokens": list(row.tokens),
                "response": "",
                "response_length": len(row.tokens) - start,
                "label": None,
                "reward": row.reward,
                "loss_mask": list(row.loss_mask[start:]),
                "weight_versions": [str(version) for version in _runs(row.versions[start:])],
                "rollout_log_probs": list(row.logprobs[start:]),
                "status": status,
                "metadata": {
                    "session_id": exported.session.session_id,
                    "trajectory_id": exported.trajectory_id,
                    "first_turn": row.first_turn,
                    "last_turn": row.last_turn,
                    "labels": dict(exported.session.labels),
                },
            }
        )
    return samples


def _segments(parts: Iterable[trajectory_service_pb2.TrajectoryRow]) -> Iterator[Row]:
    row = Row()
    for part in parts:
        row.append(part.tokens, part.tokens.loss_mask)
        if part.last:
            row.first_turn, row.last_turn, row.aborted = part.first_turn, part.last_turn, part.aborted
            row.reward = part.reward if part.HasField("reward") else None
            row.finish_reason = part.finish_reason
            yield row
            row = Row()


def _turns(records: Iterable[types_pb2.Record], context: array[int]) -> Iterator[Row]:
    """One row a record. What an ABORTED one left is in no other row."""
    line = Row(array("I", context)).context(len(context))
    for record in records:
        committed = record.status == types_pb2.RECORD_STATUS_COMMITTED
        if not committed and record.status != types_pb2.RECORD_STATUS_ABORTED:
            continue
        span = record.record.tokens
        offset = span.offset if record.record.HasField("tokens") else len(line.tokens)
        row = line.context(offset)
        row.append(span, span.loss_mask)
        row.first_turn = row.last_turn = record.turn
        row.reward = record.discounted_reward if record.HasField("discounted_reward") else None
        row.aborted, row.finish_reason = not committed, record.record.finish_reason
        yield row
        if committed:
            line = row


def _runs(values: Iterable[int]) -> Iterator[int]:
    """Each value that differs from the one before it, without NO_VERSION."""
    last = NO_VERSION
    for value in values:
        if value not in (last, NO_VERSION):
            yield value
            last = value


def _numpy() -> Any:
    try:
        import numpy as np
    except ImportError:
        raise ImportError('rows as arrays need numpy: pip install "roost[train]"') from None
    return np
