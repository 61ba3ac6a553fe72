"""Build script: the package lives under python/, and exactly one SGLang release is supported."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "([^"]+)"', (HERE / "python/tokencake_sglang/version.py").read_text()
).group(1)

setup(
    name="tokencake-sglang",
    version=VERSION,
    description="TokenCake on SGLang: agent-aware KV cache scheduling for multi-agent programs",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    package_dir={"": "python"},
    packages=find_packages("python"),
    install_requires=["sglang==0.5.17"],
    extras_require={"test": ["pytest>=8", "hypothesis>=6.100", "pytest-timeout>=2.3"]},
    entry_points={
        "console_scripts": ["tokencake = tokencake_sglang.cli:main"],
        "sglang.srt.plugins": ["tokencake = tokencake_sglang.engine.plugin:register"],
        "sglang.srt.platforms": ["tokencake_cpu = tokencake_sglang.platforms:activate"],
    },
)
