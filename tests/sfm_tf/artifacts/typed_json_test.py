import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest

from sfm_tf.artifacts.typed_json import from_json, read_typed
from sfm_tf.errors import SfmError


@dataclasses.dataclass(frozen=True)
class Inner:
    number: float | None


@dataclasses.dataclass(frozen=True)
class Outer:
    one: Inner
    many: tuple[Inner, ...]
    named: Mapping[str, Inner]
    anything: Any
    perhaps: Inner | None = None


ABSENT = Outer(Inner(1.5), (Inner(None), Inner(2.0)), {"a": Inner(3.0)}, {"b": [1]})


@pytest.mark.parametrize("outer", [ABSENT, dataclasses.replace(ABSENT, perhaps=Inner(4.0))])
def test_a_dataclass_comes_back_from_json(outer):
    assert from_json(Outer, json.loads(json.dumps(dataclasses.asdict(outer)))) == outer


@pytest.mark.parametrize("text", ['{"other": 1}', "{}", "[1]", '"a"', "1", "{"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "values.json"
    path.write_text(text)
    with pytest.raises(SfmError, match=r"^Cannot read .*values.json"):
        read_typed(Inner, path)
