"""The contents of messages as a hostile peer sends them, and their use at the end that receives them."""

import math
import random
from typing import Any

from flcore_transport.piece_format import PieceRanges

from flcore.job.contract import Bounds
from flcore.job.messages import (
    AnswerContent,
    JoinContent,
    TaskContent,
    WelcomeContent,
    decode_spec,
    encode_tensors,
    parse_content,
)
from flcore.model.wire_format import WireFormat
from flcore.server.uploads import check_content, check_tensors, validate_metrics
from tests.fuzz.mutations import mutate_json
from tests.fuzz.piece_targets import FORMATS, SPEC
from tests.fuzz.target import require, strict_json


def same(left: Any, right: Any) -> bool:
    """Whether two JSON values are equal; a NaN is equal to a NaN, and 1 to 1.0."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, bool) or isinstance(right, bool) or not isinstance(left, int | float):
        return type(left) is type(right) and bool(left == right)
    return isinstance(right, int | float) and (left == right or (left != left and right != right))


class Contents:
    """The contents of messages, and what they lead to at the end that receives them."""

    name, share = "contents", 200

    def __init__(self) -> None:
        tensors = encode_tensors(SPEC)
        answer = AnswerContent(
            returns="weights",
            upload_id="0a" * 8,
            weight=2.5,
            metrics={"loss": 0.5, "n": 3},
            spec_fingerprint=SPEC.fingerprint,
        )
        hyperparameters: dict[str, Any] = {"lr": 0.1, "layers": [3, {"a": None}]}
        task = TaskContent(task="train", round=3, rounds=10, seed=2**62, hyperparameters=hyperparameters)
        self._valid: list[Any] = [
            JoinContent(contract='{"name":"small"}', code_digest="0" * 64, version="0.1.0"),
            WelcomeContent(tensors=tensors, code_digest="0" * 64, version="0.1.0"),
            task,
            answer,
            answer.model_copy(update={"tensors": tensors}),
            AnswerContent(returns="metrics", weight=1.0, metrics={"é": 1e300}),
        ]
        self._encoded = [each.to_bytes() for each in self._valid]
        self.cases = len(self._valid)

    def make(self, draw: random.Random, case: int) -> bytes:
        data = self._encoded[case]
        return mutate_json(draw, data, draw.choice(self._encoded)) if draw.random() < 0.98 else data

    def feed(self, case: int, data: bytes) -> None:
        content_type = type(self._valid[case])
        content = parse_content(content_type, data)
        self._use(content)
        again = content.to_bytes()
        require(parse_content(content_type, again).to_bytes() == again, "its encoding is not stable")
        came, written = strict_json(data), strict_json(again)
        require(came.keys() <= written.keys(), f"keys that are not written: {came.keys() - written.keys()}")
        require(same(came, {key: written[key] for key in came}), "the value has changed")

    @staticmethod
    def _use(content: Any) -> None:
        """Do as the end that receives a content does."""
        if isinstance(content, AnswerContent):
            check_content(content, "a", content.returns, Bounds())
            valid, _ = validate_metrics(content)
            require(all(map(math.isfinite, valid.values())), "a metric is not finite")
            check_tensors(content, FORMATS[0].layout, "a", FORMATS[0])
        if isinstance(content, WelcomeContent):
            spec = decode_spec(content.tensors)
            require(encode_tensors(spec) == content.tensors, "the tensors have changed")
            PieceRanges(WireFormat.compressed(spec, "int8[64]").layout)
