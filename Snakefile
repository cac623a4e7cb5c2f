# From a folder of images to fid.txt. One file of rules a phase, in the order they run.
from snakemake.utils import min_version

min_version("9.20")


configfile: "config/config.yaml"
configfile: "config/paper.yaml"


# On one machine the accelerators are shared by all jobs; what a cluster has, SLURM knows: there jobs
# ask for `gpu`, and the limit of the default profile does not count.
resource_scopes:
    accelerator="local",


include: "rules/common.smk"
include: "rules/weights.smk"
include: "rules/poses.smk"
include: "rules/training.smk"
include: "rules/views.smk"
include: "rules/gathering.smk"
include: "rules/scores.smk"
include: "rules/stand_ins.smk"
include: "rules/docs.smk"


rule all:
    default_target: True
    input:
        [final(name) for name in configuration.targets or configuration.datasets],
    localrule: True
