# The study as a graph of notebooks: params/<profile>/*.yaml -> papermill -> runs/<profile>/.
#
#     snakemake --cores 2 --config profile=demo --nolock       # what `make study` does
#     snakemake --profile profiles/slurm --config profile=mini  # the same on a cluster
#
# Small models leave most of a GPU idle, so several jobs may share it: with --cores 8 --resources
# gpu=4 at most four of them train at a time. Without --resources the cores alone decide.
#
# Each job runs one notebook. What it leaves for the graph is the executed notebook in
# runs/<profile>/notebooks/. A job that runs again finds its finished run by configuration and
# inputs and ends at once, so that only changes cost time. A job that was stopped in a training goes
# on from its checkpoint.
import fcntl
import os
import shutil
import signal
import sys
from pathlib import Path

import psutil

from snakemake.logging import logger

from rolib.config import ROOT, ConfigError
from rolib.profiles import check_known, load_profile
from rolib.progress import StudyProgress

PROFILE = config.get("profile", "demo")


def checked(function, *arguments):
    """What a function of parameters returns; its error ends the study before the first job."""
    try:
        return function(*arguments)
    except ConfigError as error:  # which Snakemake would not show, since its own words are off
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)


STUDY = checked(load_profile, PROFILE)  # every parameter is checked here
PARAMS = f"params/{PROFILE}"
RUNS = ROOT / (os.environ.get("ROLIB_RUNS") or "runs") / PROFILE
DONE = f"{RUNS}/notebooks"
LOGS = RUNS / "logs"
LOGS.mkdir(parents=True, exist_ok=True)
PROGRESS = StudyProgress(LOGS)
if workflow.is_main_process:
    logger.addHandler(PROGRESS)

TEACHERS, STUDENTS = list(STUDY["teachers"]), list(STUDY["students"])
SEEDS, CONTROLS = list(dict.fromkeys(STUDY["study"].distillation_seeds)), STUDY["study"].controls
# A student of several teachers has the shape and vocabulary of its first teacher's own student, and
# so the same controls; but for `init-only`, which reads the blocks and masks of its student.
CONTROLLED = [name for name in STUDENTS if len(STUDY["students"][name].shares) == 1]


def checkpoints(method, seeds=SEEDS):
    """The model of each distillation seed, by name: the first has the name of its method."""
    return {f"{method}-seed-{seed}" if i else method: seed for i, seed in enumerate(seeds)}


# By name: the student whose parameters a model has, its objective and its seed.
DISTILLED = {}
for student in STUDENTS:
    for model, seed in checkpoints(student).items():
        DISTILLED[model] = (student, "distill", seed)
for student in STUDENTS:
    own = CONTROLS if student in CONTROLLED else {"init-only"} & {*CONTROLS}
    for control in [control for control in own if control != "random"]:
        # Nothing is random in `truncated`; `longer` is a reference, and as large as a teacher.
        seeds = SEEDS[:1] if control in ("truncated", "longer") else SEEDS
        for model, seed in checkpoints(f"{student}-{control}", seeds).items():
            DISTILLED[model] = (student, control, seed)
EVALUATED = [*TEACHERS, *DISTILLED, "bag-of-words"]
if "random" in CONTROLS:
    EVALUATED += [f"{name}-random" for name in TEACHERS + CONTROLLED]
for part in ("robustness", "export"):
    if part in STUDY:
        checked(check_known, STUDY[part].models, EVALUATED, f"models ({PARAMS}/{part}.yaml)")

# A job is single-threaded unless it has the machine for itself; two-thread jobs side by side are
# slower than one. A job on a cluster has the cores that it asked for.
CORES = workflow.resource_settings.cores or 1  # None where a cluster runs the jobs
if workflow.local_exec:
    threads_of_a_job = os.cpu_count() // CORES if workflow.is_main_process else CORES
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads_of_a_job)))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# setsid: of Ctrl-C a job hears once, from Snakemake. setpriv: a killed Snakemake takes its jobs with
# it. timeout: what takes longer than `runtime` hangs. No shell may stand between them and Snakemake,
# therefore exec. macOS has none of them.
EXEC = "exec "
if shutil.which("setpriv"):
    EXEC += "setsid setpriv --pdeathsig TERM "
if shutil.which("timeout"):
    EXEC += "timeout --foreground --signal XCPU --kill-after 90 {resources.runtime}m "
LOG = '> "{LOGS}/$(basename {output:q} .ipynb).log" 2>&1 '  # bars, warnings, errors
RUN = LOG + EXEC + "python -m rolib.notebook {input.notebook} {output:q} "
RUN += "$(printf -- '-f %s ' {input.parameters})"
# What a job may take at most, with room: at the paper's shapes 2 to 5 GB were measured. Another
# limit: --set-resources student:runtime=24h. What was stopped at its limit goes on from there.
TRAINS = {"gpu": 1, "mem_mb": 16000, "runtime": "72h"}
READS = {"gpu": 0, "mem_mb": 8000, "runtime": "8h"}
TRAINING = [f"{PARAMS}/common.yaml", f"{PARAMS}/training.yaml"]


def stop(number, frame):
    """Stop the jobs, as Ctrl-C does; Snakemake would let them end, which may take days."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    logger.removeHandler(PROGRESS)  # that the jobs fail now is no news
    for job in psutil.Process().children():
        job.terminate()
    STOPPED.append(number)
    raise KeyboardInterrupt


def strangers():
    """Evaluations in the runs folder that the parameters do not have; the tables count them."""
    numbers = [*STUDY["evaluate"].seeds, *(STUDY["task"].seeds if "task" in STUDY else [])]
    seeds = [f"seed-{number}" for number in numbers]
    models = {*EVALUATED, *(f"{name}-random" for name in TEACHERS)}  # those of the gate
    found = set()
    for run in (RUNS / "evaluation").glob("[!.]*/*/seed-[0-9]*"):
        model, task, seed = run.parts[-3:]
        if model not in models:
            found.add(model)
        elif task not in STUDY["evaluate"].tasks or seed not in seeds:
            found.add(f"{model}/{task}/{seed}")
    return sorted(found)


STOPPED, LOCK = [], open(RUNS / ".lock", "a+")


# The operating system releases this lock when Snakemake ends, however it ends. Snakemake's own lock
# stays after a kill and is off (--nolock).
onstart:
    try:
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        LOCK.seek(0)
        print(f"error: process {LOCK.read()} works on {RUNS}: wait for it or stop it", file=sys.stderr)
        os._exit(1)
    if strangers():
        print(f"note: {PARAMS} does not have these, but the tables count them:", *strangers(),
              f"(move them out of {RUNS}/evaluation if they are old)", file=sys.stderr)
    LOCK.truncate(0)
    LOCK.write(str(os.getpid()))
    LOCK.flush()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, stop)
    # Notebooks of a killed study may still write their checkpoints.
    notebooks = [job for job in psutil.process_iter(["cmdline"]) if job.info["cmdline"]]
    command = ["-m", "rolib.notebook", f"{DONE}/"]
    old = [job for job in notebooks if all(word in " ".join(job.info["cmdline"]) for word in command)]
    psutil.wait_procs(old, timeout=90)


onerror:
    if STOPPED:
        print(f"stopped: `make study PROFILE={PROFILE}` goes on from here", file=sys.stderr)
        sys.exit(128 + STOPPED[0])
    print("not finished; what rests on these was not run:", file=sys.stderr)
    print(*PROGRESS.failures.values(), sep="\n", file=sys.stderr)


wildcard_constraints:
    teacher="|".join(TEACHERS),
    model="|".join(sorted(EVALUATED, key=len, reverse=True)),


rule all:
    input:
        f"{RUNS}/report.html",


rule students:  # the models alone: what `make students` makes and `make pretrained` ships
    input:
        [f"{DONE}/02-{student}.ipynb" for student in STUDENTS],


rule teacher:
    input:
        notebook="notebooks/01-prepare-teachers.ipynb",
        parameters=TRAINING + [f"{PARAMS}/pretrain.yaml", PARAMS + "/teachers/{teacher}.yaml"],
        read=f"{PARAMS}/evaluate.yaml",  # by its gate, through the profile
    output:
        DONE + "/01-{teacher}.ipynb",
    params:
        source=f"-p source {config['source']}" if "source" in config else "",
    resources: **TRAINS
    shell:
        RUN + " {params.source}"


def inputs_of(wildcards):
    """Of a student or control: notebooks of its teachers, and its parameter files."""
    student = DISTILLED[wildcards.model][0]
    files = TRAINING + [f"{PARAMS}/distill.yaml", f"{PARAMS}/students/{student}.yaml"]
    teachers = [f"{DONE}/01-{teacher}.ipynb" for teacher in STUDY["students"][student].shares]
    return {"teachers": teachers, "parameters": files}


def changes_of(wildcards):
    """The parameters that a student or control has of its own."""
    _, objective, seed = DISTILLED[wildcards.model]
    return f"-p student {wildcards.model} -p objective {objective} -p seed {seed}"


rule student:
    input:
        unpack(inputs_of),
        notebook="notebooks/02-distil-student.ipynb",
    output:
        DONE + "/02-{model}.ipynb",
    params:
        changes=changes_of,
    resources: **TRAINS
    shell:
        RUN + " {params.changes}"


def model_of(wildcards):
    name = wildcards.model.removesuffix("-random")
    if name == "bag-of-words":
        return []
    return f"{DONE}/{'01' if name in TEACHERS else '02'}-{name}.ipynb"


rule evaluate:
    input:
        model_of,
        notebook="notebooks/03-evaluate-model.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/evaluate.yaml"],
    output:
        DONE + "/03-{model}.ipynb",
    resources: **TRAINS
    shell:
        RUN + " -p model {wildcards.model}"


def evaluation_of(model):
    """The notebook that evaluates a model: of a teacher and its random control 01 runs one seed."""
    teacher = model.removesuffix("-random")
    in_01 = teacher in TEACHERS and len(STUDY["evaluate"].seeds) == 1
    return f"{DONE}/01-{teacher}.ipynb" if in_01 else f"{DONE}/03-{model}.ipynb"


def evaluations_of(*models):
    return sorted({evaluation_of(model) for model in models})


EVALUATIONS = evaluations_of(*EVALUATED)


rule loyalty:
    input:
        EVALUATIONS,
        notebook="notebooks/04-analyse-loyalty.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/analyse.yaml"],
    output:
        f"{DONE}/04-analyse-loyalty.ipynb",
    resources: **READS
    shell:
        RUN


rule speed:
    input:
        EVALUATIONS,
        notebook="notebooks/05-measure-speed.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/speed.yaml"],
    output:
        f"{DONE}/05-measure-speed.ipynb",
    threads: CORES  # alone on the machine, or the clock measures the neighbours
    resources: **READS
    shell:
        RUN


PARTS = {
    "robustness": "07-measure-robustness",
    "ablation": "09-ablate-ensemble",
    "export": "10-export-student",
    "task": "11-distil-at-task",
    "budget": "12-vary-budget",
}


rule report:
    input:
        f"{DONE}/04-analyse-loyalty.ipynb",
        f"{DONE}/05-measure-speed.ipynb",
        [f"{DONE}/{PARTS[part]}.ipynb" for part in STUDY["study"].parts],
        notebook="notebooks/06-report-results.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/analyse.yaml"],
    output:
        f"{DONE}/06-report-results.ipynb",
    resources: **READS
    shell:
        RUN


rule page:  # what notebook 06 shows, without its code
    input:
        notebook=f"{DONE}/06-report-results.ipynb",
        template=sorted(map(str, Path("notebooks/templates/report").iterdir())),
    output:
        f"{RUNS}/report.html",
    resources: **READS
    shell:
        '> "{LOGS}/report.log" 2>&1 ' + EXEC + "jupyter nbconvert --log-level WARN --to html "
        "--template report --TemplateExporter.extra_template_basedirs=notebooks/templates "
        "--output-dir {RUNS:q} --output report {input.notebook:q}"


# The rules below run on demand too: make ablation PROFILE=..., make task, make budget, make export.
rule ablation:
    input:
        [f"{DONE}/01-{teacher}.ipynb" for teacher in TEACHERS],
        # What it reads through the profile.
        [f"{PARAMS}/{name}.yaml" for name in ("training", "distill", "evaluate")],
        [f"{PARAMS}/students/{student}.yaml" for student in STUDENTS],
        notebook="notebooks/09-ablate-ensemble.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/ablation.yaml"],
    output:
        f"{DONE}/09-ablate-ensemble.ipynb",
    resources: **TRAINS
    shell:
        RUN


rule task:
    input:
        lambda wildcards: evaluations_of(*TEACHERS, STUDY["task"].student),
        notebook="notebooks/11-distil-at-task.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/task.yaml"],
    output:
        f"{DONE}/11-distil-at-task.ipynb",
    resources: **TRAINS
    shell:
        RUN


rule budget:
    input:
        lambda wildcards: evaluations_of(*TEACHERS, *checkpoints(STUDY["budget"].student)),
        notebook="notebooks/12-vary-budget.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/budget.yaml"],
    output:
        f"{DONE}/12-vary-budget.ipynb",
    resources: **TRAINS
    shell:
        RUN


rule robustness:
    input:
        lambda wildcards: evaluations_of(*(STUDY["robustness"].models or EVALUATED)),
        notebook="notebooks/07-measure-robustness.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/robustness.yaml"],
    output:
        f"{DONE}/07-measure-robustness.ipynb",
    resources: **TRAINS
    shell:
        RUN


rule export:
    input:
        EVALUATIONS,
        notebook="notebooks/10-export-student.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/export.yaml"],
    output:
        f"{DONE}/10-export-student.ipynb",
    threads: CORES  # alone on the machine, as `speed`
    resources: **READS
    shell:
        RUN


rule explore:  # not part of `all`: it leaves nothing but its page
    input:
        EVALUATIONS,
        notebook="notebooks/08-explore-predictions.ipynb",
        parameters=f"{PARAMS}/common.yaml",
    output:
        f"{DONE}/08-explore-predictions.ipynb",
    resources: **READS
    shell:
        RUN
