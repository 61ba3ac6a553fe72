"""`tokencake emulate`: from flags to an experiment, and what each wrong flag is answered with."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.support.emulation import run_document
from tokencake_sglang.core.errors import ConfigError
from tokencake_sglang.emulator import cli, request, workloads
from tokencake_sglang.emulator.cells import Cell
from tokencake_sglang.emulator.profile import load_profile
from tokencake_sglang.emulator.report import build_report

OWN = {"mine": {"server_args": {"schedule-policy": "lpm", "chunked_prefill_size": 512}, "host_ratio": 4.0},
       "ours": {"tokencake": {"offload_policy": "none"}}}


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(OWN))
    return path


def experiment(text: str, *words: str):
    return request.experiment_of(cli.build_parser().parse_args([*shlex.split(text), *words]))


def refused(text: str, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        experiment(text, *words)
    return str(caught.value)


def test_the_cells_are_the_cross_product_of_rates_pools_ratios_and_seeds(own):
    plan = experiment(f"code_writer --qps 0.5,1 --pool 1000,2000 --host-ratio 0,2 --seeds 3,4 --config-file {own}"
                      " --compare mine,ours")
    assert len(plan.cells) == 16 and plan.cells[0] == Cell(0.5, 1000, 0.0, 3) and plan.cells[-1] == Cell(1, 2000, 2, 4)
    specs = [job.spec for job in plan.jobs()]
    assert len(specs) == 32
    assert [spec.configuration.name for spec in specs[:2]] == ["mine", "ours"]
    assert specs[0].workload == specs[1].workload
    assert specs[-1].workload.params == {"qps": 1.0} and specs[-1].workload.seed == 4
    assert specs[-1].pool_tokens == 2000 and specs[-1].host_ratio == 2.0


def test_a_link_is_a_cell_of_its_own_with_both_directions_of_the_profile_at_that_rate(own):
    plan = experiment(f"code_writer --config-file {own} --compare mine --link 8,25 --seeds 1,2")
    assert [(cell.link_gb_s, cell.seed) for cell in plan.cells] == [(8.0, 1), (8.0, 2), (25.0, 1), (25.0, 2)]
    assert plan.cells[0].name == "qps-own_pool-profile_host-2_link-8_seed-1"
    slow, fast = ([load_profile(job.spec.profile) for job in plan.jobs()][i] for i in (0, 2))
    assert (slow.h2d_bytes_per_s, slow.d2h_bytes_per_s, fast.h2d_bytes_per_s) == (8e9, 8e9, 25e9)
    changed = experiment(f"code_writer --config-file {own} --compare mine --link 7.5 --profile"
                         " qwen2.5-14b@a100-80gb?layers=40")
    profile = load_profile(next(changed.jobs()).spec.profile)
    assert (profile.layers, profile.h2d_bytes_per_s) == (40, 7.5e9)


def test_without_flags_there_is_one_cell_with_the_workloads_own_rate_and_the_profiles_pool(own):
    plan = experiment(f"code_writer --config-file {own} --compare mine")
    assert plan.cells == (Cell(None, None, 2.0, 1),) and plan.oracle and plan.overlap
    assert next(plan.jobs()).spec.workload.params == {}


def test_flags_of_the_run_reach_every_run(own):
    plan = experiment(f"deep_research --config-file {own} --compare mine,ours --normal-loop --no-oracle --apps 3"
                      " --seed 7 --param tool_factor=2.5 --param tool_noise=uniform --profile qwen2.5-14b@a100-80gb")
    for job in plan.jobs():
        assert not job.spec.overlap and not job.spec.oracle and job.spec.workload.seed == 7
        assert job.spec.workload.params == {"tool_factor": 2.5, "tool_noise": "uniform", "applications": 3}


def test_a_server_argument_goes_to_every_configuration_and_wins(own):
    plan = experiment(f"code_writer --config-file {own} --compare mine,ours --server-arg chunked-prefill-size=256"
                      " --server-arg enable_mixed_chunk=true --server-arg attention_backend=torch_native")
    more = {"chunked_prefill_size": 256, "enable_mixed_chunk": True, "attention_backend": "torch_native"}
    assert [one.server_args for one in plan.configurations] == [{"schedule_policy": "lpm", **more}, more]


def test_own_configurations_have_every_field(own):
    mine, ours = experiment(f"code_writer --config-file {own} --compare mine,ours").configurations
    assert mine.host_ratio == 4.0 and mine.tokencake is None and ours.tokencake == {"offload_policy": "none"}


def test_own_configurations_may_be_yaml(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("by-age:\n  priority: program_age\n  server_args: {enable-priority-scheduling: true}\n")
    (one,) = experiment(f"code_writer --config-file {path} --compare by-age").configurations
    assert one.priority == "program_age" and one.server_args == {"enable_priority_scheduling": True}


@pytest.mark.parametrize(("flags", "words"), [
    ("", "no workload is named"),
    ("code_writer --seed 1 --seeds 2", "Keep one of them"),
    ("code_writer --seeds 1,1", "has a number twice"),
    ("code_writer --seed one", "--seed is 'one'; allowed: whole numbers"),
    ("code_writer --qps 0", "--qps is '0'; allowed: numbers above 0"),
    ("code_writer --qps inf", "--qps is 'inf'"),
    ("code_writer --qps nan", "--qps is 'nan'"),
    ("code_writer --pool 1.5", "--pool is '1.5'; allowed: whole numbers above 0"),
    ("code_writer --host-ratio -1", "--host-ratio is '-1'; allowed: numbers of 0 or more"),
    ("code_writer --link 0", "--link is '0'; allowed: numbers above 0"),
    ("code_writer --link 8,8", "--link is '8,8', which has a number twice"),
    ("code_writer --apps 0", "--apps is '0'"),
    ("code_writer --param tools", "not of the form name=value"),
    ("code_writer --param a=1 --param a=2", "given twice"),
    ("code_writer --param qps=1 --qps 2", "--qps and --param qps=... are both given"),
    ("code_writer --param applications=1 --apps 2", "--apps and --param applications=... are both given"),
    ("code_writer --param arrival=closed --qps 2", "'closed' and have no rate"),
    ("mooncake --qps 2", "Add --param arrival=poisson"),
    ("mix --qps 2", "'fixed' and have no rate"),
    ("mix --apps 2", "mix has no number of apps"),
    ("code_writer --param colour=red", "unknown parameter colour; it takes applications"),
    ("no_such_workload", "no workload 'no_such_workload'"),
    ("no_such_workload --apps 3", "no workload 'no_such_workload'"),
    ("code_writer --profile no-such-device", "no-such-device"),
    ("nowhere.jsonl", "the trace nowhere.jsonl does not exist"),
])
def test_a_wrong_flag_is_refused_with_what_was_asked_and_what_is_allowed(own, flags, words):
    said = refused(f"{flags} --config-file {own} --compare mine")
    assert words in said and said.endswith(".")


@pytest.mark.parametrize(("compared", "words"), [
    ("mine,mine", "names mine twice"), (",", "is empty")])
def test_names_to_compare_are_given_once(own, compared, words):
    assert words in refused(f"code_writer --config-file {own} --compare", compared)


@pytest.mark.parametrize(("text", "words"), [
    ('{"a": 1}', "'a' is no object"),
    ('{"a": {"colour": 1}}', "has the field 'colour'. Allowed: an object of server_args, tokencake"),
    ('{"../a": {}}', "has a name that cannot be a file's"),
    ('{"a": {"server_args": 1}}', "server_args must be an object"),
    ('{"a": {"priority": "high"}}', "priority is 'high'; allowed: none, program_age"),
    ('{"a": {"tokencake": {"speed": 1}}}', "unknown TokenCake setting 'speed'"),
    ("[]", "holds a list"), ("{", "is not valid json"),
])
def test_a_wrong_file_of_configurations_is_refused(tmp_path, text, words):
    path = tmp_path / "own.json"
    path.write_text(text)
    assert words in refused(f"code_writer --config-file {path}")


def test_a_refusal_is_one_line_on_standard_error_and_status_2(capsys, tmp_path):
    assert cli.main(["code_writer", "--seed", "x", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("tokencake emulate: --seed is 'x'") and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "out").exists()


def test_a_folder_with_runs_is_not_overwritten_unless_it_is_resumed(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match="already holds runs"):
        cli.output_folder(str(tmp_path), False)
    assert cli.output_folder(str(tmp_path), True) == tmp_path
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        cli.output_folder(str(tmp_path / "file/below"), False)


@pytest.fixture
def report(tmp_path, own):
    plan = experiment(f"code_writer --config-file {own} --compare mine,ours --qps 0.5 --seeds 1,2 --apps 2 --no-oracle")
    path = tmp_path / "report.json"
    results = {job.file: run_document(job.spec, [1.0]) for job in plan.jobs()}
    path.write_text(json.dumps(build_report(plan, results, [])))
    return path, plan


def test_a_report_can_be_repeated_as_it_was_or_with_some_of_its_configurations(report):
    path, plan = report
    assert experiment(f"--repeat-from {path}") == plan
    some = experiment(f"--repeat-from {path} --compare ours")
    assert some.cells == plan.cells and some.configurations == plan.configurations[1:]


@pytest.mark.parametrize("flag", [
    "code_writer", "--qps 1", "--seed 2", "--link 8", "--normal-loop", "--param a=1", "--apps 4"])
def test_what_a_report_says_cannot_be_said_again(report, flag):
    assert "--repeat-from takes workload, cells and profile from the report" in refused(
        f"--repeat-from {report[0]} {flag}")


def test_only_a_report_can_be_repeated(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert "has the schema None; allowed: 'tokencake-emulation-report/1'" in refused(f"--repeat-from {path}")
    assert "cannot be read" in refused(f"--repeat-from {tmp_path / 'none.json'}")


def test_names_and_groups_of_shipped_configurations_can_be_compared_each_once(own):
    from tokencake_sglang.emulator import configurations

    plan = experiment(f"code_writer --config-file {own} --compare bounds,clairvoyant,tokencake,mine")
    assert [one.name for one in plan.configurations] == [*configurations.group("bounds"), "tokencake", "mine"]


def test_without_names_the_default_ones_and_those_of_the_file_are_compared(own):
    plan = experiment(f"code_writer --config-file {own}")
    assert [one.name for one in plan.configurations] == [*request.DEFAULT_COMPARE, "mine", "ours"]
    assert {one.tokencake is None for one in plan.configurations[:5]} == {True}
    assert plan.configurations[5].tokencake is not None


def test_an_unknown_configuration_is_refused_with_those_of_the_file(own):
    said = refused(f"code_writer --config-file {own} --compare hicache-best")
    assert "--compare names 'hicache-best', which is no configuration" in said
    assert "Those of --config-file are mine, ours." in said


@pytest.mark.parametrize(("ending", "name"), [(".jsonl", "mooncake"), (".csv", "tracelab")])
def test_the_path_of_a_trace_is_a_workload(own, ending, name):
    data = Path(workloads.__file__).parents[1] / "data"
    (trace,) = data.glob("*" + ending)
    plan = experiment(f"{trace} --config-file {own} --compare mine --apps 2")
    assert plan.workload == name and plan.params == {"path": str(trace), "limit": 2}


def test_the_list_names_every_workload_configuration_group_and_profile(capsys):
    from tokencake_sglang.emulator import configurations, device_facts

    assert cli.main(["--list"]) == 0
    words = {line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines()}
    names = [*workloads.names(), *configurations.names(), *configurations.GROUPS]
    assert {*names, *device_facts.profile_ids(device_facts.shipped_facts())} <= words
