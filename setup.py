"""Build script: the package lives under python/, and exactly one SGLang release is supported."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "python/tokencake_sglang/version.py").read_text()).group(1)


class BuildWithPatches(build_py):
    """Ships the patch series inside the package; an editable install reads it from the checkout instead."""

    def _patch_files(self):
        target = Path(self.build_lib) / "tokencake_sglang/patching/data"
        return {path: target / path.name for path in sorted((HERE / "patches").iterdir()) if path.is_file()}

    def run(self):
        super().run()
        if not getattr(self, "editable_mode", False):
            for source, target in self._patch_files().items():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode=1):
        shipped = {} if getattr(self, "editable_mode", False) else self._patch_files()
        return super().get_outputs(include_bytecode) + [str(path) for path in shipped.values()]

# Agent stacks that the tests and examples/stacks run as they are; the OpenAI and Anthropic SDKs come with SGLang.
CLIENT_STACKS = ["openai-agents>=0.4,<0.5", "langgraph>=1.2,<2", "langchain-openai>=1.1,<1.2"]  # that fit its openai

setup(
    name="tokencake-sglang",
    version=VERSION,
    description="TokenCake on SGLang: agent-aware KV cache scheduling for multi-agent programs",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    cmdclass={"build_py": BuildWithPatches},
    package_dir={"": "python"},
    packages=find_packages("python"),
    package_data={"tokencake_sglang.emulator": ["data/*"]},
    install_requires=["sglang==0.5.17"],
    extras_require={
        "test": ["pytest>=8", "hypothesis>=6.100", "pytest-timeout>=2.3", *CLIENT_STACKS],
        "plots": ["matplotlib>=3.8"],
    },
    entry_points={
        "console_scripts": ["tokencake = tokencake_sglang.cli:main"],
        "sglang.srt.plugins": ["tokencake = tokencake_sglang.engine.plugin:register"],
        "sglang.srt.platforms": ["tokencake_cpu = tokencake_sglang.platforms:activate"],
    },
)
