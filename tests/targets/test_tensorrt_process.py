import json
import sys

import pytest

from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, UnsupportedModelError
from vitslim.targets.tensorrt.process import run_worker

START = "import json, os, signal, sys; request = json.load(open(sys.argv[1])); "


def run(tmp_path, code, **options):
    """A builder that does ``code`` instead of building."""
    command = [sys.executable, "-c", START + code]
    return run_worker({}, tmp_path, name_module=lambda name, operator: "blocks.3.attn", command=command, **options)


def answer(error) -> str:
    return f"open(request['answer'], 'w').write({json.dumps({'error': error})!r})"


def test_an_answer_comes_back_with_the_log(tmp_path):
    built = run(tmp_path, "print('[INFO] hello'); open(request['answer'], 'w').write('{\"tensorrt\": \"11.4\"}')")
    assert built.answer == {"tensorrt": "11.4"}
    assert built.log == ["[INFO] hello"]


def test_an_abort_in_the_builder_is_an_error_here_with_its_last_word(tmp_path):
    with pytest.raises(CheckFailedError, match=r"taken down by SIGABRT.*--plugins off.*could not find plugin x"):
        run(tmp_path, "os.write(1, b'[ERROR] could not find plugin x\\n'); os.abort()")


def test_a_crash_in_the_builder_is_an_error_here(tmp_path):
    with pytest.raises(CheckFailedError, match="SIGSEGV"):
        run(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)")


def test_want_of_memory_is_named_however_it_shows(tmp_path):
    with pytest.raises(CheckFailedError, match=r"SIGKILL.*want of memory; build with a smaller --batch"):
        run(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(CheckFailedError, match="ran out of memory"):
        run(tmp_path, "os.write(2, b'what():  std::bad_alloc\\n'); os.abort()")
    with pytest.raises(CheckFailedError, match="ran out of memory"):
        run(tmp_path, answer({"kind": "memory", "message": "used up"}))


def test_a_builder_that_says_nothing_or_never_ends_is_an_error(tmp_path):
    with pytest.raises(CheckFailedError, match=r"exit code 3 and no answer.*the log says nothing"):
        run(tmp_path, "sys.exit(3)")
    with pytest.raises(CheckFailedError, match=r"ended after 0\.2 s"):
        run(tmp_path, "import time; time.sleep(60)", timeout_seconds=0.2)


def test_a_node_that_the_parser_refuses_is_named_with_its_module(tmp_path):
    nodes = [
        {"operator": "Det", "name": "node_Det_3", "reason": "no importer", "functions": []},
        {"operator": "Det", "name": "node_Det_4", "reason": "no importer", "functions": []},
    ]
    with pytest.raises(UnsupportedModelError) as error:
        run(tmp_path, answer({"kind": "parser", "message": "refused", "nodes": nodes}))
    assert "node 'node_Det_3' (Det) in module 'blocks.3.attn': no importer; 1 more node likewise" in str(error.value)


def test_a_full_disk_and_a_wrong_option_are_distinguished(tmp_path):
    with pytest.raises(CheckpointError, match=r"could not be written \(No space left on device\); free some space"):
        run(tmp_path, answer({"kind": "disk", "message": "No space left on device"}))
    with pytest.raises(ConfigError, match="no builder flag REFIT"):
        run(tmp_path, answer({"kind": "option", "message": "this TensorRT (9) has no builder flag REFIT"}))
