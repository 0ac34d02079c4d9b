# The study as a graph of notebooks: params/<profile>/*.yaml -> papermill -> runs/<profile>/.
#
#     snakemake --cores 2 --config profile=demo
#
# Small models leave most of a GPU idle, so several jobs may share it: with --cores 8 --resources
# gpu=4 at most four of them train at a time. Without --resources the cores alone decide.
#
# Each job runs one notebook. What it leaves for the graph is the executed notebook in
# runs/<profile>/notebooks/. A job that runs again finds its finished run by configuration and
# inputs and ends at once, so that only changes cost time.
import os
from pathlib import Path

from snakemake.logging import logger

from rolib.config import ROOT
from rolib.profiles import load_profile
from rolib.progress import StudyProgress

PROFILE = config.get("profile", "demo")
STUDY = load_profile(PROFILE)  # every parameter is checked here, before the first job
PARAMS = f"params/{PROFILE}"
RUNS = Path(os.environ.get("ROLIB_RUNS") or ROOT / "runs") / PROFILE
DONE = f"{RUNS}/notebooks"
LOGS = RUNS / "logs"
LOGS.mkdir(parents=True, exist_ok=True)
if workflow.is_main_process:
    logger.addHandler(StudyProgress(LOGS))

TEACHERS, STUDENTS = list(STUDY["teachers"]), list(STUDY["students"])
# Controls: the same architecture and budget with masked words alone, and from random weights. A
# student of several teachers has the shape and vocabulary of its first teacher's own student, and
# so the same controls.
CONTROLLED = [name for name in STUDENTS if len(STUDY["students"][name].shares) == 1]
CONTROLS = [f"{student}-mlm" for student in CONTROLLED]
EVALUATED = TEACHERS + STUDENTS + CONTROLS + [f"{name}-random" for name in TEACHERS + CONTROLLED]

# A job is single-threaded unless it has the machine for itself; two-thread jobs side by side are
# slower than one.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // workflow.cores)))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
LOG = "> {LOGS}/$(basename {output} .ipynb).log 2>&1 "  # bars, warnings, errors
RUN = LOG + "python -m rolib.notebook {input.notebook} {output}"
TRAINING = [f"{PARAMS}/common.yaml", f"{PARAMS}/training.yaml"]


wildcard_constraints:
    teacher="|".join(TEACHERS),
    student="|".join(STUDENTS),


rule all:
    input:
        f"{RUNS}/report.html",


rule students:  # what `make pretrained` ships
    input:
        [f"{DONE}/02-{student}.ipynb" for student in STUDENTS],


rule teacher:
    input:
        notebook="notebooks/01-prepare-teachers.ipynb",
        parameters=TRAINING + [f"{PARAMS}/pretrain.yaml", PARAMS + "/teachers/{teacher}.yaml"],
    output:
        DONE + "/01-{teacher}.ipynb",
    resources: gpu=1
    shell:
        RUN + " $(printf -- '-f %s ' {input.parameters})"


def teachers_of(wildcards):
    return [f"{DONE}/01-{teacher}.ipynb" for teacher in STUDY["students"][wildcards.student].shares]


STUDENT = TRAINING + [f"{PARAMS}/distill.yaml", PARAMS + "/students/{student}.yaml"]


rule student:
    input:
        teachers_of,
        notebook="notebooks/02-distil-student.ipynb",
        parameters=STUDENT,
    output:
        DONE + "/02-{student}.ipynb",
    resources: gpu=1
    shell:
        RUN + " $(printf -- '-f %s ' {input.parameters})"


rule mlm_control:
    input:
        teachers_of,
        notebook="notebooks/02-distil-student.ipynb",
        parameters=STUDENT,
    output:
        DONE + "/02-{student}-mlm.ipynb",
    resources: gpu=1
    shell:
        RUN + " $(printf -- '-f %s ' {input.parameters})"
        " -p student {wildcards.student}-mlm -p objective mlm"


def model_of(wildcards):
    name = wildcards.model.removesuffix("-random")
    return f"{DONE}/{'01' if name in TEACHERS else '02'}-{name}.ipynb"


rule evaluate:
    input:
        model_of,
        notebook="notebooks/03-evaluate-model.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/evaluate.yaml"],
    output:
        DONE + "/03-{model}.ipynb",
    resources: gpu=1
    shell:
        RUN + " $(printf -- '-f %s ' {input.parameters}) -p model {wildcards.model}"


def evaluation_of(model):
    """The notebook that evaluates a model: of a teacher and its random control 01 runs one seed."""
    teacher = model.removesuffix("-random")
    in_01 = teacher in TEACHERS and len(STUDY["evaluate"].seeds) == 1
    return f"{DONE}/01-{teacher}.ipynb" if in_01 else f"{DONE}/03-{model}.ipynb"


EVALUATIONS = sorted({evaluation_of(model) for model in EVALUATED})


rule loyalty:
    input:
        EVALUATIONS,
        notebook="notebooks/04-analyse-loyalty.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/analyse.yaml"],
    output:
        f"{DONE}/04-analyse-loyalty.ipynb",
    shell:
        RUN + " $(printf -- '-f %s ' {input.parameters})"


rule speed:
    input:
        EVALUATIONS,
        notebook="notebooks/05-measure-speed.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/speed.yaml"],
    output:
        f"{DONE}/05-measure-speed.ipynb",
    threads: workflow.cores  # alone on the machine, or the clock measures the neighbours
    shell:
        RUN + " $(printf -- '-f %s ' {input.parameters})"


# Of the notebooks that read the fine-tuned models a quick study on the sample leaves out the export.
WITH_KEPT_MODELS = ["07-measure-robustness", "10-export-student"]
if STUDY["export"].data == "sample":
    WITH_KEPT_MODELS = WITH_KEPT_MODELS[:1]
if not STUDY["evaluate"].keep_models:
    WITH_KEPT_MODELS = []


rule report:
    input:
        f"{DONE}/04-analyse-loyalty.ipynb",
        f"{DONE}/05-measure-speed.ipynb",
        [f"{DONE}/{name}.ipynb" for name in WITH_KEPT_MODELS],
        notebook="notebooks/06-report-results.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/analyse.yaml"],
    output:
        f"{DONE}/06-report-results.ipynb",
    shell:
        RUN + " $(printf -- '-f %s ' {input.parameters})"


rule page:  # what notebook 06 shows, without its code
    input:
        notebook=f"{DONE}/06-report-results.ipynb",
        template=sorted(map(str, Path("notebooks/templates/report").iterdir())),
    output:
        f"{RUNS}/report.html",
    shell:
        LOG + "jupyter nbconvert --log-level WARN --to html --template report "
        "--TemplateExporter.extra_template_basedirs=notebooks/templates "
        "--output-dir {RUNS} --output report {input.notebook}"


rule ablation:  # on demand: make ablation PROFILE=...
    input:
        [f"{DONE}/01-{teacher}.ipynb" for teacher in TEACHERS],
        notebook="notebooks/09-ablate-ensemble.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/ablation.yaml"],
    output:
        f"{DONE}/09-ablate-ensemble.ipynb",
    resources: gpu=1
    shell:
        RUN + " $(printf -- '-f %s ' {input.parameters})"


rule robustness:
    input:
        [evaluation_of(model) for model in STUDY["robustness"].models or EVALUATED],
        notebook="notebooks/07-measure-robustness.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/robustness.yaml"],
    output:
        f"{DONE}/07-measure-robustness.ipynb",
    resources: gpu=1
    shell:
        RUN + " $(printf -- '-f %s ' {input.parameters})"


rule export:
    input:
        EVALUATIONS,
        notebook="notebooks/10-export-student.ipynb",
        parameters=[f"{PARAMS}/common.yaml", f"{PARAMS}/export.yaml"],
    output:
        f"{DONE}/10-export-student.ipynb",
    threads: workflow.cores  # alone on the machine, as `speed`
    shell:
        RUN + " $(printf -- '-f %s ' {input.parameters})"


rule explore:  # not part of `all`: it leaves nothing but its page
    input:
        EVALUATIONS,
        notebook="notebooks/08-explore-predictions.ipynb",
        parameters=f"{PARAMS}/common.yaml",
    output:
        f"{DONE}/08-explore-predictions.ipynb",
    shell:
        RUN + " -f {input.parameters}"
