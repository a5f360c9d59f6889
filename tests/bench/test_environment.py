import getpass
import json
import platform
from pathlib import Path

import torch

from vitslim.bench import environment


def test_it_names_hardware_load_and_versions():
    found = environment()
    assert found["torch"] == torch.__version__.split("+")[0]
    assert found["timm"]
    assert found["python"] == platform.python_version()
    assert found["cores"] >= found["cores_usable"] >= 1
    assert found["cpu"]
    assert len(found["gpu"]) == torch.cuda.device_count()


def test_it_fits_json_and_does_not_say_whose_machine_it_is():
    text = json.dumps(environment())
    for private in (platform.node(), str(Path.home()), str(Path.cwd())):
        assert not private or private not in text
    assert f'"{getpass.getuser()}"' not in text
    assert "/root" not in text
    assert "/home" not in text
