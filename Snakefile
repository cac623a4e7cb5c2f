# From a folder of images to fid.txt. One file of rules per phase, in order.
from snakemake.utils import min_version

from mirage_steps.files.configuration import check_configfiles, configfiles

min_version("9.20")
# Before Snakemake merges them, which forgets a section that is given twice. The files of a workflow
# that has this one as a module are its own.
if workflow.modifier.is_main_snakefile():
    check_configfiles(configfiles(workflow.overwrite_configfiles))
for path in configfiles([]):

    configfile: path


# Local jobs share the accelerators. On a cluster jobs request `gpu` from SLURM, and the limit of the
# default profile does not apply.
resource_scopes:
    accelerator="local",


include: "rules/common.smk"
include: "rules/weights.smk"
include: "rules/poses.smk"
include: "rules/training.smk"
include: "rules/views.smk"
include: "rules/evidence.smk"
include: "rules/scores.smk"
include: "rules/gathering.smk"
include: "rules/stand_ins.smk"
include: "rules/docs.smk"


# The exit code tells that photos were left out, after everything else was made.
onsuccess:
    if UNUSABLE:
        photo, reason = min(UNUSABLE.items())
        refuse(
            f"{len(UNUSABLE)} photos cannot be used, all else is made; the first, {photo}: {reason}"
        )


rule all:
    default_target: True
    input:
        [final(name) for name in configuration.targets or configuration.datasets],
    localrule: True
