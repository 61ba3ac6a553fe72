"""What one `tokencake emulate` command runs: cells, and in each cell every configuration on the same programs.

A cell is one arrival rate, one device pool, one host pool and one seed. Plain values, so a report can be repeated.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tokencake_sglang.emulator.spec import Configuration, RunSpec, WorkloadSpec


@dataclass(frozen=True)
class Cell:
    """`qps` None: the workload's own arrivals. `pool_tokens` None: the profile's device pool. `host_ratio`: host KV
    pool over device KV pool, where the configuration does not set it itself. `link_gb_s` None: the profile's links."""

    qps: float | None
    pool_tokens: int | None
    host_ratio: float
    seed: int
    link_gb_s: float | None = None

    @property
    def group(self) -> str:
        """Name of the cells that differ in nothing but the seed; a file name."""
        qps = "own" if self.qps is None else f"{self.qps:g}"
        pool = "profile" if self.pool_tokens is None else str(self.pool_tokens)
        link = "" if self.link_gb_s is None else f"_link-{self.link_gb_s:g}"
        return f"qps-{qps}_pool-{pool}_host-{self.host_ratio:g}{link}"

    @property
    def name(self) -> str:
        return f"{self.group}_seed-{self.seed}"


@dataclass(frozen=True)
class Job:
    """One run of the experiment."""

    cell: Cell
    spec: RunSpec

    @property
    def configuration(self) -> Configuration:
        return self.spec.configuration

    @property
    def file(self) -> str:
        """Path of the result below the output folder."""
        return f"runs/{self.cell.name}/{self.configuration.name}.json"


@dataclass(frozen=True)
class Experiment:
    """A workload, the cells to run it in, and the configurations to compare."""

    workload: str
    params: dict[str, Any]
    cells: tuple[Cell, ...]
    configurations: tuple[Configuration, ...]
    profile: str
    overlap: bool = True
    oracle: bool = True
    measure_from_s: float = 0.0
    samples: int = 200

    def workload_spec(self, cell: Cell) -> WorkloadSpec:
        params = dict(self.params) if cell.qps is None else {**self.params, "qps": cell.qps}
        return WorkloadSpec(self.workload, cell.seed, params)

    def jobs(self) -> Iterator[Job]:
        """Cell by cell, so that the first comparison is whole as early as possible."""
        for cell in self.cells:
            for configuration in self.configurations:
                yield Job(cell, RunSpec(
                    workload=self.workload_spec(cell), configuration=configuration,
                    profile=with_link(self.profile, cell.link_gb_s),
                    pool_tokens=cell.pool_tokens, host_ratio=cell.host_ratio, overlap=self.overlap,
                    oracle=self.oracle, measure_from_s=self.measure_from_s, samples=self.samples))

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back: lists, not tuples."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Experiment:
        values = dict(values)
        values["cells"] = tuple(Cell(**cell) for cell in values["cells"])
        values["configurations"] = tuple(Configuration(**entry) for entry in values["configurations"])
        return cls(**values)


@dataclass(frozen=True)
class Grid:
    """The values whose cross product are the cells."""

    qps: tuple[float | None, ...] = (None,)
    pools: tuple[int | None, ...] = (None,)
    host_ratios: tuple[float, ...] = (2.0,)
    seeds: tuple[int, ...] = (1,)
    links: tuple[float | None, ...] = (None,)

    def cells(self) -> tuple[Cell, ...]:
        grid = itertools.product(self.qps, self.pools, self.host_ratios, self.links, self.seeds)
        return tuple(Cell(qps, pool, ratio, seed, link) for qps, pool, ratio, link, seed in grid)


def with_link(profile: str, gb_s: float | None) -> str:
    """The name of a profile with links of so many GB/s in both directions (None: its own)."""
    if gb_s is None:
        return profile
    rate = f"{gb_s * 1e9:.10g}"
    return f"{profile}{'&' if '?' in profile else '?'}h2d_bytes_per_s={rate}&d2h_bytes_per_s={rate}"


def is_stock(configuration: dict[str, Any] | Configuration) -> bool:
    """Stock SGLang by its own flags: neither TokenCake nor a bound that knows the future."""
    values = asdict(configuration) if isinstance(configuration, Configuration) else configuration
    return values["tokencake"] is None and not values["bound"]
