"""The cluster examples are valid for Ray and KubeRay, and so are their commands for vosengine."""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vosengine.batch.plan import BatchOptions
from vosengine.cli.app import app

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCHEMA = Path(__file__).resolve().parents[1] / "support" / "rayjob_schema.json"

ray: Any = pytest.importorskip("ray", reason='ray is not installed: pip install "vosengine[ray]"')
jsonschema: Any = pytest.importorskip("jsonschema", reason="jsonschema comes with ray")


def check(content: Any, schema: Any) -> None:
    jsonschema.Draft202012Validator(schema).validate(content)


def test_the_cluster_is_one_that_ray_takes() -> None:
    text = (EXAMPLES / "ray_cluster.yaml").read_text()
    content = yaml.safe_load(text)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate({**content, "max_worker": 1}, schema)
    assert f":{version('ray')}-" in content["docker"]["image"]
    assert content["head_node_type"] in content["available_node_types"]
    (command,) = re.findall(r'"(vosengine batch .*?)"', text.replace("\\\n#", ""), re.DOTALL)
    assert understood(command).ray == "auto"


def test_the_job_is_one_that_kuberay_takes() -> None:
    content = yaml.safe_load((EXAMPLES / "ray_job.yaml").read_text())
    schema = json.loads(SCHEMA.read_text())
    check(content, schema)
    with pytest.raises(jsonschema.ValidationError, match="retries"):
        check({**content, "spec": {**content["spec"], "retries": 1}}, schema)
    assert content["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
    assert understood(content["spec"]["entrypoint"]).ray == "auto"


def understood(command: str) -> BatchOptions:
    """Parse the arguments of `vosengine batch`."""
    seen: list[BatchOptions] = []

    def batch(options: BatchOptions, **_: Any) -> None:
        seen.append(options)
        raise KeyboardInterrupt  # before anything is told of it

    program, *arguments = shlex.split(command)
    assert program == "vosengine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vosengine.commands.batch.batch", batch)
        CliRunner().invoke(app, arguments)
    (parsed,) = seen
    return parsed
