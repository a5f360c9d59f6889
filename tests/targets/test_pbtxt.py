"""Protocol buffers' text format, read back by protobuf itself."""

import pytest

from vitslim.targets.triton.pbtxt import Name, map_field, text_format

pytest.importorskip("google.protobuf")

from google.protobuf import struct_pb2
from google.protobuf import text_format as protobuf

from tests.targets.triton_schema import parse


@pytest.mark.parametrize("text", ['a "quoted" \\ path', "two\nlines\tand a tab", "Zürich 東京", "", "\x07"])
def test_any_text_comes_back_as_it_was(text: str) -> None:
    written = text_format({"string_value": text})
    assert protobuf.Parse(written, struct_pb2.Value()).string_value == text


def test_names_of_an_enumeration_stand_without_quotes() -> None:
    assert text_format({"kind": Name("KIND_GPU"), "name": "KIND_GPU"}) == 'kind: KIND_GPU\nname: "KIND_GPU"\n'


def test_lists_maps_and_messages_are_what_protobuf_reads() -> None:
    config = parse(
        text_format(
            {
                "name": "m",
                "input": [{"name": "images", "data_type": Name("TYPE_FP32"), "dims": [3, 32, -1]}],
                "dynamic_batching": {"preferred_batch_size": [], "max_queue_delay_microseconds": 5},
                "parameters": map_field({"a": "1", "b": "2"}),
                "backend": None,
            }
        )
    )
    assert list(config.input[0].dims) == [3, 32, -1]
    assert config.dynamic_batching.max_queue_delay_microseconds == 5
    assert {one.key: one.value.string_value for one in config.parameters} == {"a": "1", "b": "2"}
    assert config.backend == ""


def test_the_reader_of_these_tests_is_strict() -> None:
    for text in ("nmae: 'm'", "max_batch_size: 'eight'", "instance_group { kind: KIND_TPU }"):
        with pytest.raises(protobuf.ParseError):
            parse(text)
